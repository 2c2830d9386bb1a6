"""Calls to a tracking store from a separate thread: whatever the store does, training continues.

`metrics.jsonl` in the run folder is the authoritative record; the store gets a copy. Each run has an outbox: first the
run begins in the store, then metric points go out in batches, along with calls (a file, a table, the end of the run).
Each is retried until the store accepts it; one that fails does not hold up the others. What the store rejects for good
(a name or a value that it does not allow) is left out.
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.callbacks.notice import Notice

START = 5.0  # seconds that the start of a run waits for its store, so that a fast one shows the run immediately
PATIENCE = 10.0  # seconds that the end of a run waits for a store that accepts nothing
LONGEST_CALL = 20.0  # seconds that it waits for a call that has neither failed nor returned, unless that is an upload
BATCH = 1000  # points per call: MLflow's limit
MOST_POINTS = 20_000  # kept in memory; the rest is sent from metrics.jsonl at the end of the run
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts; the last one repeats
_SAID_AFTER = 3.0  # seconds without an answer; a shorter outage is not worth a message
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}  # MLflow's error codes for a value that it will never accept

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


@dataclass
class Work:
    """One call, and its state so far.

    Args:
        label: what messages call its content.
        make: the call.
        after: wait until no call whose key begins with this is left; `metrics` stands for the points.
        last: wait until everything else has been tried.
        upload: may take long.
        quiet: whoever queued it reports what the store rejects.
    """

    label: str
    make: Callable[[], Any]
    after: str | None = None
    last: bool = False
    upload: bool = False
    quiet: bool = False
    future: Future[Any] = field(default_factory=Future)
    failures: int = 0
    due: float = 0.0


class Outbox:
    """What one run has to send to its store. Nothing here waits, except `open` and `wait`.

    Args:
        tracker: the store's tracker.
        begin: creates or finds the run in the store; retried until it works.
        send: sends a batch of points.
        notice: reports what the store does not accept.
        local: the store is a file, where beginning may have to create a database, which takes time.
        parent: the outbox of the run that this one belongs to, which begins first.
    """

    def __init__(
        self,
        tracker: Tracker,
        begin: Callable[[], Any],
        send: Callable[[list[Point]], Any],
        notice: Notice,
        parent: Outbox | None = None,
        local: bool = False,
    ) -> None:
        self.tracker, self.notice, self.parent = tracker, notice, parent
        self.begin = Work("the run", begin, upload=local)
        self.begun = self.opened = False
        self.troubled = False  # something failed or was left out: the store may lack a part
        self._send = send
        self._points: collections.deque[Point] = collections.deque()
        self._metrics = Work("metrics", self._send_some)
        self._calls: dict[str, Work] = {}
        self.failing_since: float | None = None
        self.success = time.monotonic()

    def open(self, seconds: float = START) -> None:
        """Start sending, and wait briefly until the run has begun or the first attempt has failed."""
        with self.tracker.changed:
            self.opened = True
        self.tracker.serve(self)
        end = time.monotonic() + seconds
        with self.tracker.changed:
            first = self.parent if self.parent is not None and self._waits_for_parent() else self
            while not self.begun and first.begin.failures == 0 and time.monotonic() < end:
                self.tracker.changed.wait(timeout=0.05)

    def add_points(self, points: Sequence[Point]) -> None:
        """Queue points; if the store has accepted none for long, leave them to `metrics.jsonl`."""
        with self.tracker.changed:
            if len(self._points) + len(points) > MOST_POINTS:
                self.troubled = True
                return
            self._points.extend(points)
            self.tracker.changed.notify_all()

    def call(self, label: str, make: Callable[[], Any], key: str | None = None, **how: Any) -> Future[Any]:
        """Queue a call, replacing a waiting one with the same key; return a future with its result.

        Args:
            label: what messages call its content.
            make: the call.
            key: identifies the call; default: the label.
            how: further fields of `Work`.
        """
        work = Work(label, make, **how)
        with self.tracker.changed:
            former = self._calls.pop(key or label, None)
            if former is not None:
                former.future.cancel()
            self._calls[key or label] = work
            self.tracker.changed.notify_all()
        return work.future

    def wait(self, seconds: float, patience: float | None = None) -> bool:
        """Wait until everything is sent.

        Args:
            seconds: the longest to wait.
            patience: the same for a store that accepts nothing at all meanwhile; default: `PATIENCE`.

        Returns:
            False if something is left.
        """
        patience = PATIENCE if patience is None else patience
        began, changed = time.monotonic(), self.tracker.changed
        with changed:
            for work in self._all().values():
                work.due = 0.0  # now, whatever the pause was
            changed.notify_all()
            while self.opened and not self._is_empty():
                now = time.monotonic()
                failing = self.failing_since
                if self.parent is not None and self._waits_for_parent():
                    failing = self.parent.failing_since
                stuck = failing is not None and now - max(began, failing) >= patience
                if now - began >= seconds or stuck or self.tracker.hangs_since(max(began, self.success)):
                    return False
                changed.wait(timeout=0.1)
        return True

    def close(self) -> list[str]:
        """Stop sending; return descriptions of what is left."""
        with self.tracker.changed:
            left = [work.label for work in self._calls.values()]
            if self.opened and not self.begun:
                left = ["the whole run"]
            elif self._points:
                left = [f"{len(self._points)} values of metrics", *(each for each in left if each != "metrics")]
            for work in (self.begin, *self._calls.values()):
                work.future.cancel()
            self._calls.clear()
            self._points.clear()
            self.opened = False
        self.tracker.forget(self)
        return list(dict.fromkeys(left))

    # ---- called with the tracker's lock held

    def next(self, now: float) -> Work | None:
        """Return the call to make now, if there is one."""
        if not self.opened:
            return None
        if not self.begun:
            return self.begin if self.begin.due <= now and not self._waits_for_parent() else None
        return next((work for work in self._may_go() if work.due <= now), None)

    def next_due(self) -> float:
        """Return when `next` may have another call."""
        if self._waits_for_parent():
            return time.monotonic() + 0.5
        work = self._may_go() if self.begun else [self.begin]
        return min((each.due for each in work), default=float("inf"))

    def _waits_for_parent(self) -> bool:
        return self.parent is not None and self.parent.opened and not self.parent.begun

    def _may_go(self) -> list[Work]:
        """Return the work that waits for no other."""
        waiting = self._all()
        free = [work for work in waiting.values() if self._is_free(work, waiting)]
        tried = all(work.failures > 0 or work.last for work in free)
        return [work for work in free if tried or not work.last]

    def _is_free(self, work: Work, waiting: dict[str, Work]) -> bool:
        after = work.after
        return after is None or not any(key.startswith(after) for key, each in waiting.items() if each is not work)

    def took(self, work: Work, result: Any) -> None:
        """Record that a call has succeeded."""
        self.success, self.failing_since = time.monotonic(), None
        work.failures, work.due = 0, 0.0
        if work is self.begin:
            self.begun = True
        if work is not self._metrics and not work.future.done():
            work.future.set_result(result)
        self._calls = {key: each for key, each in self._calls.items() if each is not work}

    def failed(self, work: Work, error: Exception, since: float) -> None:
        """Record that a call has failed; it is retried unless the store rejects it for good."""
        self.troubled = True
        if work is not self.begin and work is not self._metrics and is_refusal(error):
            if not work.quiet:
                self.notice.refusal(work.label, error)
            self._calls = {key: each for key, each in self._calls.items() if each is not work}
            if not work.future.cancelled():
                work.future.set_exception(error)
            return
        work.due = time.monotonic() + _PAUSES[min(work.failures, len(_PAUSES) - 1)]
        work.failures += 1
        self.failing_since = self.failing_since or since
        self.notice.error = error
        if time.monotonic() - self.failing_since >= _SAID_AFTER:
            self.notice.outage(work.label, error)

    def _all(self) -> dict[str, Work]:
        return {**({"metrics": self._metrics} if self._points else {}), **self._calls}

    def _is_empty(self) -> bool:
        return self.begun and not self._points and not self._calls

    # ---- called by the tracker's thread

    def _send_some(self) -> None:
        with self.tracker.changed:
            batch = [self._points[i] for i in range(min(BATCH, len(self._points)))]
        self._send_batch(batch)
        with self.tracker.changed:
            for _ in range(min(len(batch), len(self._points))):  # none, if it was closed meanwhile
                self._points.popleft()

    def _send_batch(self, batch: list[Point]) -> None:
        """Send points; if the store rejects some of them, send all the others."""
        try:
            self._send(batch)
        except Exception as error:
            if not is_refusal(error):
                raise
            if len(batch) == 1:
                self.notice.refusal(f"the metric {batch[0][0]}", error)
                return
            half = len(batch) // 2
            self._send_batch(batch[:half])
            self._send_batch(batch[half:])


class Tracker:
    """The thread that talks to one store, for all runs in this process."""

    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._outboxes: list[Outbox] = []
        self._call_since: float | None = None
        self._uploads = False
        self._thread: threading.Thread | None = None

    def serve(self, outbox: Outbox) -> None:
        """Send what an outbox holds, now and later, until it is closed."""
        with self.changed:
            if outbox not in self._outboxes:
                self._outboxes.append(outbox)
            self.changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()

    def forget(self, outbox: Outbox) -> None:
        """Stop serving an outbox."""
        with self.changed:
            self._outboxes = [each for each in self._outboxes if each is not outbox]
            self.changed.notify_all()

    def hangs_since(self, moment: float) -> bool:
        """Return whether the current call has taken too long since the given moment."""
        if self._call_since is None or self._uploads:
            return False
        return time.monotonic() - max(moment, self._call_since) >= LONGEST_CALL

    def _work(self) -> None:
        while True:
            outbox, work = self._await_work()
            began = time.monotonic()
            try:
                result = work.make()
            except Exception as error:
                with self.changed:
                    self._call_since = None
                    outbox.failed(work, error, began)
                    self.changed.notify_all()
                continue
            with self.changed:
                self._call_since = None
                outbox.took(work, result)
                self.changed.notify_all()

    def _await_work(self) -> tuple[Outbox, Work]:
        with self.changed:
            while True:
                now = time.monotonic()
                for outbox in self._outboxes:
                    if (work := outbox.next(now)) is not None:
                        self._call_since, self._uploads = now, work.upload
                        return outbox, work
                due = min((outbox.next_due() for outbox in self._outboxes), default=float("inf"))
                self.changed.wait(timeout=None if due == float("inf") else min(5.0, max(0.01, due - now)))


_trackers: dict[str, Tracker] = {}


def tracker_of(uri: str) -> Tracker:
    """Return the tracker of a store, one for all runs in this process."""
    return _trackers.setdefault(uri, Tracker())


def is_refusal(error: BaseException) -> bool:
    """Return whether the store will never accept what it was sent."""
    return getattr(error, "error_code", None) in _REFUSALS


def points_of(metrics: Iterable[tuple[str, Any]], step: int, now: int, prefix: str = "") -> list[Point]:
    """Return the points of a set of metrics, with names that MLflow allows.

    >>> points_of([("reward/my(fn)@2", 1.5), ("note", "text")], step=3, now=0)
    [('reward/my_fn__2', 1.5, 0, 3)]
    """
    numbers = {allowed_name(f"{prefix}{name}"): value for name, value in metrics if not isinstance(value, str)}
    return [(name, float("nan") if value is None else float(value), now, step) for name, value in numbers.items()]


def allowed_name(name: str) -> str:
    """Return the name with characters that MLflow does not allow replaced.

    >>> allowed_name("reward/my(fn)@2")
    'reward/my_fn__2'
    """
    return "".join(c if (c.isascii() and c.isalnum()) or c in "_-. /:" else "_" for c in name)
