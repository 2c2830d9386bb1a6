"""A store in a temporary folder with a clock that a test turns, and tasks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/feedback.db"


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
