"""Calls to a tracking store from a thread of its own: whatever the store does, training goes on.

`metrics.jsonl` in the run folder is the truth; the store gets a copy of it. Calls are made in order, and again until
the store answers. What it refuses for good (a name it does not allow, a deleted run) is left out with one line.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from rlhf_lightning.errors import reason

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that the end of a run waits for a store that does not answer
LONGEST_CALL = 300.0  # seconds that it waits for a single call, such as the upload of a model
_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)  # seconds between attempts; the last one repeats
# What MLflow says of a call that will never work.
_FINAL = {
    *("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST", "NOT_FOUND"),
    *("PERMISSION_DENIED", "UNAUTHENTICATED", "ENDPOINT_NOT_FOUND", "INVALID_STATE", "FEATURE_DISABLED"),
}


class Tracker:
    """The thread that talks to one store, and its queue.

    Args:
        store: how messages call it, without a password.
    """

    def __init__(self, store: str) -> None:
        self.store = store
        self._calls: collections.deque[tuple[Callable[[], Any], Future[Any]]] = collections.deque()
        self._changed = threading.Condition()
        self._failing_since: float | None = None
        self._call_since: float | None = None
        self._given_up = False
        self._thread: threading.Thread | None = None

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Queue a call; the future has its result once the store has answered."""
        future: Future[Any] = Future()
        with self._changed:
            self._given_up = False
            self._calls.append((call, future))
            self._changed.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=f"tracking {self.store}", daemon=True)
                self._thread.start()
        return future

    def wait(self, patience: float = PATIENCE) -> bool:
        """Wait until every call is made; False if the store has not answered for `patience` seconds."""
        began = time.monotonic()
        with self._changed:
            while self._calls:
                now = time.monotonic()
                if self._failing_since is not None and now - max(began, self._failing_since) >= patience:
                    return False
                if self._call_since is not None and now - max(began, self._call_since) >= LONGEST_CALL:
                    return False
                self._changed.wait(timeout=0.1)
        return True

    def give_up(self) -> int:
        """Drop what is queued; returns how many calls that were."""
        with self._changed:
            self._given_up = True
            dropped = len(self._calls)
            for _, future in self._calls:
                future.cancel()
            self._calls.clear()
            self._changed.notify_all()
        return dropped

    def _work(self) -> None:
        attempt = 0
        while True:
            with self._changed:
                while not self._calls:
                    self._changed.wait()
                call, future = self._calls[0]
                self._call_since = time.monotonic()
            try:
                result = call()
            except Exception as error:
                if self._is_final(error):
                    log.warning("tracking: %s refuses a call, which is left out: %s", self.store, reason(error))
                    self._done(lambda future=future, error=error: future.set_exception(error))  # type: ignore[misc]
                    attempt = 0
                    continue
                self._begin_outage(error)
                self._pause(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
                continue
            attempt = 0
            self._end_outage()
            self._done(lambda future=future, result=result: future.set_result(result))  # type: ignore[misc]

    def _done(self, settle: Callable[[], None]) -> None:
        with self._changed:
            self._call_since = None
            if self._calls:  # unless it was given up meanwhile
                self._calls.popleft()
                settle()
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        with self._changed:
            self._call_since = None
            self._changed.wait_for(lambda: self._given_up, timeout=seconds)

    def _begin_outage(self, error: Exception) -> None:
        if self._failing_since is None:
            self._failing_since = time.monotonic()
            log.warning(
                "tracking: no answer from %s (%s); the run goes on, metrics.jsonl has everything, and what is missing "
                "there is sent when it answers",
                *(self.store, reason(error)),
            )

    def _end_outage(self) -> None:
        if self._failing_since is not None:
            log.warning("tracking: %s answers again after %.0f s", self.store, time.monotonic() - self._failing_since)
            self._failing_since = None

    @staticmethod
    def _is_final(error: Exception) -> bool:
        return isinstance(error, TypeError | KeyError) or getattr(error, "error_code", None) in _FINAL


_trackers: dict[str, Tracker] = {}


def tracker_of(uri: str, store: str) -> Tracker:
    """The tracker of a store, one for all runs in this process.

    Args:
        uri: where the store is.
        store: how messages call it.
    """
    return _trackers.setdefault(uri, Tracker(store))
