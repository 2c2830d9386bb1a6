"""A tracking store may be slow, die and come back: nothing is lost or sent twice, and nothing waits for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from rlhf_lightning.callbacks import tracker as module
from rlhf_lightning.callbacks.notice import Notice
from rlhf_lightning.callbacks.tracker import Outbox, Point, Tracker

REFUSED = MlflowException("bad value", error_code=1000)  # INVALID_PARAMETER_VALUE


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSES", (0.01,))
    monkeypatch.setattr(module, "_SAID_AFTER", 0.05)


class Store:
    """Accepts calls and points while it is up; refuses one name for good; may take its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.up, self.seconds = True, seconds
        self.taken: list[Any] = []
        self.batches: list[int] = []

    def take(self, value: Any) -> Any:
        time.sleep(self.seconds)
        if not self.up:
            raise ConnectionError("no answer")
        self.taken.append(value)
        return value

    def take_points(self, points: list[Point]) -> None:
        if any(name == "bad" for name, *_ in points):
            raise REFUSED
        self.batches.append(len(points))
        for name, _, _, step in points:
            self.take((name, step))


def outbox(
    store: Store, tracker: Tracker | None = None, lines: list[str] | None = None, parent: Outbox | None = None
) -> Outbox:
    say: Callable[[str], object] = (lines if lines is not None else []).append
    notice = Notice("http://host", "rlhf-track run=run", say)
    return Outbox(tracker or Tracker(), lambda: store.take("begin"), store.take_points, notice, parent)


def points(*steps: int, name: str = "loss") -> list[Point]:
    return [(name, step / 10, 0, step) for step in steps]


def test_the_run_begins_first_then_points_and_calls_then_its_end() -> None:
    store = Store()
    box = outbox(store)
    box.call("its end", lambda: store.take("end"), last=True)
    made = box.call("a call", lambda: store.take("call"))
    box.add_points(points(1, 2))
    assert not store.taken  # nothing before it is opened
    box.open()
    assert box.wait(5)
    assert store.taken == ["begin", ("loss", 1), ("loss", 2), "call", "end"]
    assert made.result(timeout=1) == "call"
    assert box.close() == []


def test_an_outage_loses_nothing_repeats_nothing_and_is_one_line() -> None:
    lines: list[str] = []
    store = Store()
    box = outbox(store, lines=lines)
    box.open()
    store.up = False
    for step in range(5):
        box.add_points(points(step))
        box.call(f"call {step}", lambda step=step: store.take(step))  # type: ignore[misc]
        time.sleep(0.05)
    store.up = True
    assert box.wait(5)
    assert sorted(map(str, store.taken)) == sorted(map(str, ["begin", *range(5), *(("loss", i) for i in range(5))]))
    (line,) = lines
    assert line.startswith("tracking: http://host does not take ") and "(no answer); the run continues" in line
    assert line.endswith("or later with rlhf-track run=run")


def test_queueing_never_waits_and_its_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_POINTS", 100)
    hung = threading.Event()
    store = Store()
    box = Outbox(Tracker(), hung.wait, store.take_points, Notice("store"))
    box.open(seconds=0)
    started = time.monotonic()
    for step in range(1000):
        box.add_points(points(step))
        box.call("the table", lambda: store.take("table"))
    assert time.monotonic() - started < 1
    hung.set()
    assert box.wait(5)
    assert store.taken.count("table") == 1  # the last table has everything
    assert len([each for each in store.taken if each != "table"]) == 100
    assert box.troubled  # so that the end of the run sends the rest from metrics.jsonl


def test_points_that_have_gathered_go_in_one_call() -> None:
    store = Store()
    box = outbox(store)
    box.add_points(points(*range(1500)))
    box.open()
    assert box.wait(5)
    assert store.batches == [1000, 500]


def test_the_end_waits_for_a_dead_store_only_so_long_and_says_what_is_left() -> None:
    store = Store()
    box = outbox(store)
    box.open()
    store.up = False
    box.add_points(points(1, 2))
    box.call("the model", lambda: store.take("model"))
    started = time.monotonic()
    assert not box.wait(30, patience=0.3)
    assert time.monotonic() - started < 5
    assert box.close() == ["2 values of metrics", "the model"]


def test_the_end_waits_for_a_slow_store_only_so_long_in_all() -> None:
    store = Store(seconds=0.1)
    box = outbox(store)
    box.open()
    for i in range(100):
        box.call(f"file {i}", lambda: store.take("file"))
    started = time.monotonic()
    assert not box.wait(0.5)
    assert time.monotonic() - started < 3
    assert len(box.close()) > 50


def test_the_end_waits_for_a_call_that_hangs_only_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_CALL", 0.2)
    hung = threading.Event()
    box = Outbox(Tracker(), hung.wait, lambda points: None, Notice("store"))
    box.open(seconds=0)
    started = time.monotonic()
    assert not box.wait(30)
    assert time.monotonic() - started < 5
    assert box.close() == ["the whole run"]
    hung.set()


def test_what_is_refused_for_good_is_left_out_alone_with_one_line() -> None:
    lines: list[str] = []
    store = Store()
    box = outbox(store, lines=lines)

    def refuse() -> None:
        raise REFUSED

    future = box.call("its parameters", refuse)
    box.call("its hyperparameters", refuse)
    box.call("the model", lambda: store.take("model"))
    box.add_points([*points(1, 2), *points(1, name="bad"), *points(3)])
    box.open()
    assert box.wait(5)
    assert store.taken[0] == "begin" and set(store.taken[1:]) == {("loss", 1), ("loss", 2), ("loss", 3), "model"}
    assert isinstance(future.exception(timeout=1), MlflowException)
    assert len(lines) == 1 and "refuses" in lines[0] and "bad value" in lines[0]


def test_what_fails_does_not_keep_the_rest_waiting_nor_the_end() -> None:
    store = Store()
    box = outbox(store)

    def fail() -> None:
        raise ConnectionError("no answer")

    box.call("the model", fail, key="model weights")
    registered = box.call("the registered model", lambda: store.take("version"), after="model ")
    box.call("its end", lambda: store.take("end"), last=True)
    box.add_points(points(1))
    box.open()
    assert not box.wait(10, patience=0.5)
    assert store.taken == ["begin", ("loss", 1), "end"]
    assert box.close() == ["the model", "the registered model"]
    assert registered.cancelled()


def test_a_stage_begins_after_its_pipeline_also_when_a_stage_before_it_was_given_up() -> None:
    store, tracker = Store(), Tracker()
    store.up = False
    pipeline = Outbox(tracker, lambda: store.take("pipeline"), store.take_points, Notice("store"))
    first, second = outbox(store, tracker, parent=pipeline), outbox(store, tracker, parent=pipeline)
    for each in (pipeline, first):
        each.open()
    assert not first.wait(5, patience=0.1)
    assert first.close() == ["the whole run"]
    second.open()
    store.up = True
    assert second.wait(5)
    assert pipeline.wait(5)
    assert store.taken == ["pipeline", "begin"]
    assert pipeline.close() == second.close() == []


def test_no_password_is_in_a_line() -> None:
    lines: list[str] = []
    notice = Notice("http://ana:pw@host", say=lines.append)
    notice.outage("metrics", ValueError("API request to http://ana:pw@host/api failed with 'x'"))
    assert "pw" not in lines[0] and "http://***@host" in lines[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("... Failed to establish a new connection: [Errno 111] Connection refused'))", "connection refused"),
        ("API request to http://h/api failed with timeout exception HTTPConnectionPool(...)", "timed out"),
        ("(sqlite3.OperationalError) database is locked [SQL: UPDATE ...]", "database is locked"),
        ("API request to endpoint /x failed with error code 403 != 200. Response body: '<html>'", "error 403"),
        ("... (Caused by ResponseError('too many 500 error responses'))", "error 500"),
        (
            "the response body was not in a valid JSON format. Response body: '<html>'",
            "not MLflow's",
        ),
    ],
)
def test_the_reason_is_a_few_words(text: str, said: str) -> None:
    words = Notice("store").why(MlflowException(text))
    assert said in words and len(words) < 40
