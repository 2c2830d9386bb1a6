"""A tracking store may be slow, die and come back: calls keep their order, none is lost, and nothing waits for long."""

from __future__ import annotations

import logging
import threading
import time

import pytest
from mlflow.exceptions import MlflowException

from rlhf_lightning.callbacks import tracker as module
from rlhf_lightning.callbacks.tracker import Tracker


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.01,))


class Store:
    """Takes calls while it is up."""

    def __init__(self) -> None:
        self.up, self.taken = True, []

    def take(self, value: int) -> int:
        if not self.up:
            raise ConnectionError("no answer")
        self.taken.append(value)
        return value


def test_calls_are_made_in_order_and_have_results() -> None:
    store, tracker = Store(), Tracker("store")
    futures = [tracker.submit(lambda i=i: store.take(i)) for i in range(100)]
    assert tracker.wait()
    assert store.taken == list(range(100))
    assert [future.result(timeout=1) for future in futures] == list(range(100))


def test_an_outage_loses_nothing_and_is_said_once_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    store, tracker = Store(), Tracker("http://host")
    store.up = False
    with caplog.at_level(logging.WARNING):
        for i in range(5):
            tracker.submit(lambda i=i: store.take(i))
        time.sleep(0.1)
        store.up = True
        assert tracker.wait()
    assert store.taken == list(range(5))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("tracking: no answer from http://host (no answer); the run goes on")
    assert lines[1].startswith("tracking: http://host answers again")


def test_submitting_never_waits() -> None:
    tracker, hung = Tracker("store"), threading.Event()
    tracker.submit(hung.wait)
    started = time.monotonic()
    for _ in range(1000):
        tracker.submit(lambda: None)
    assert time.monotonic() - started < 1
    hung.set()
    assert tracker.wait()


def test_the_end_of_a_run_waits_for_a_dead_store_only_so_long() -> None:
    store, tracker = Store(), Tracker("store")
    store.up = False
    tracker.submit(lambda: store.take(0))
    started = time.monotonic()
    assert not tracker.wait(patience=0.3)
    assert time.monotonic() - started < 5
    assert tracker.give_up() == 1
    store.up = True
    tracker.submit(lambda: store.take(1))  # the next run tries again
    assert tracker.wait()
    assert store.taken == [1]


def test_a_call_that_is_refused_for_good_is_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    store, tracker = Store(), Tracker("store")

    def refused() -> None:
        raise MlflowException("bad name", error_code=1000)  # INVALID_PARAMETER_VALUE

    with caplog.at_level(logging.WARNING):
        future = tracker.submit(refused)
        tracker.submit(lambda: store.take(1))
        assert tracker.wait()
    assert store.taken == [1]
    assert isinstance(future.exception(timeout=1), MlflowException)
    assert "refuses a call, which is left out: MlflowException: bad name" in caplog.text or "bad name" in caplog.text
