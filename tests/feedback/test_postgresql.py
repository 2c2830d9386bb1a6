"""The store's tests with a real PostgreSQL, and properties that only it has."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import FeedbackStore
from tests.feedback.servers import HOW, postgresql, programs
from tests.programs import ENVIRONMENT, ROOT

pytestmark = pytest.mark.slow
FILES = ("test_store.py", "test_killed_store.py", "test_postgresql.py")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    binaries = programs()
    if binaries is None or importlib.util.find_spec("psycopg") is None:
        pytest.skip(HOW)
    with postgresql(binaries) as url:
        yield url


@pytest.mark.skipif("RLHF_TEST_DATABASE" in os.environ, reason="it is one of these tests")
def test_the_tests_of_the_store_pass_on_postgresql(server: str) -> None:
    files = [str(Path(__file__).with_name(name)) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-q", "-m", "", "-k", "not 20", *files]
    environment = {**os.environ, **ENVIRONMENT, "RLHF_TEST_DATABASE": server}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" in done.stdout  # tests about files


@pytest.fixture
def shared(url: str) -> str:
    if url.startswith("sqlite"):
        pytest.skip(HOW)
    return url


@pytest.mark.parametrize(
    "change", ["UPDATE judgements SET choice = 1", "DELETE FROM judgements", "TRUNCATE judgements CASCADE"]
)
def test_judgements_are_append_only_even_without_rows(shared: str, change: str) -> None:
    with (
        FeedbackStore(shared) as store,
        pytest.raises(UserError, match="never changed"),
        store.changing() as connection,
    ):
        connection.execute(text(change))


def test_a_store_of_the_first_version_refuses_changes_from_now_on(shared: str) -> None:
    with FeedbackStore(shared) as store, store.changing() as connection:
        for trigger in ("judgements_no_change", "judgements_no_truncate"):
            connection.execute(text(f"DROP TRIGGER {trigger} ON judgements"))
        connection.execute(text("DROP TABLE samples"))
        connection.execute(text("UPDATE facts SET value = '1' WHERE name = 'version'"))
    with (
        FeedbackStore(shared) as store,
        pytest.raises(UserError, match="never changed"),
        store.changing() as connection,
    ):
        connection.execute(text("DELETE FROM judgements"))


def test_a_lock_that_is_held_is_one_clear_error(shared: str) -> None:
    with (
        FeedbackStore(shared) as holder,
        FeedbackStore(shared, patience=0.2) as store,
        holder.changing(),
        pytest.raises(UserError, match=r"locked by another process for 0\.2 s"),
    ):
        store.add_labeler("ana")
    with FeedbackStore(shared) as store:
        store.add_labeler("ana")


def test_a_server_that_is_not_there_is_one_clear_error() -> None:
    pytest.importorskip("psycopg", reason=HOW)
    with pytest.raises(
        UserError, match=r"feedback\.store: postgresql\+psycopg://127\.0\.0\.1:9/x: .*refused"
    ) as raised:
        FeedbackStore("postgresql+psycopg://127.0.0.1:9/x")
    assert "\n" not in str(raised.value)
