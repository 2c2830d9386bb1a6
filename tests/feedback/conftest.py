"""A store in a temporary folder with a clock controlled by the test, and tasks for it.

With RLHF_TEST_DATABASE, the URL of a PostgreSQL database, each store is a separate schema there.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url

from rlhf_lightning.feedback.records import Response, Task, task_id
from rlhf_lightning.feedback.store import FeedbackStore


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    database = os.environ.get("RLHF_TEST_DATABASE")
    if database is None:
        yield f"sqlite:///{tmp_path}/feedback.db"
        return
    engine, schema = create_engine(database), f"test_{uuid.uuid4().hex}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {schema}")
    yield make_url(database).update_query_dict({"options": f"-csearch_path={schema}"}).render_as_string(False)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {schema} CASCADE")
    engine.dispose()


@pytest.fixture
def file(url: str) -> str:
    """Return the file of an SQLite store; a test that asks for it is about files."""
    if not url.startswith("sqlite"):
        pytest.skip("it is about a file")
    return url.removeprefix("sqlite:///")


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[FeedbackStore]:
    with FeedbackStore(url, clock=clock, patience=0.2, returns_after=600, repeat_gap=2) as store:
        yield store


@pytest.fixture
def pair() -> Callable[..., Task]:
    def make(name: str, first: str = "", second: str = "", **settings: object) -> Task:
        texts = (first or f"{name}: short", second or f"{name}: a longer answer")
        shown = (Response(texts[0], "old"), Response(texts[1], "new"))
        return Task(task_id("pair", name, texts), "pair", name, shown, **settings)  # type: ignore[arg-type]

    return make
