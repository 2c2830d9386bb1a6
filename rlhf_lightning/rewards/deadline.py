"""A time limit on a user's own function: a reward that hangs must not stall a run forever.

The function runs in the main thread, as it does without a limit, so that no result depends on the limit. At the limit
the system's alarm raises an exception in it, which also interrupts `time.sleep`, a socket, a lock or a regular
expression, since all of them check for signals. If that does not help within `GRACE` (the function catches everything,
or is in C code that checks for no signals but lets other threads run), a thread prints the line and ends the process.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from rlhf_lightning.errors import UserError

GRACE = 5.0  # seconds
_AGAIN = 1.0  # seconds after which the alarm raises again, in a function that continues
_leave = os._exit  # what a command replaces while user code may call it

T = TypeVar("T")


class _LateError(BaseException):
    """Not an Exception, so that `except Exception` does not catch it."""


def within(seconds: float | None, call: Callable[[], T], late: str) -> T:
    """Call a function and return its result, within a time limit.

    Args:
        seconds: the limit; None: no limit.
        call: takes no arguments.
        late: the message about a call that takes longer.

    Raises:
        UserError: it has not returned in time.
    """
    if seconds is None:
        return call()
    in_main = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    ended, start = threading.Event(), time.monotonic()
    thread = threading.Thread(target=_end_process, args=(ended, seconds + GRACE * in_main, late), daemon=True)
    thread.start()
    try:
        result = _with_alarm(seconds, call) if in_main else call()
    except _LateError:
        raise UserError(late) from None
    except BaseException as error:
        if time.monotonic() - start >= seconds and not isinstance(error, UserError | SystemExit):
            raise UserError(late) from error  # what the function made of the interruption
        raise
    finally:
        ended.set()
    if time.monotonic() - start >= seconds:
        raise UserError(late)
    return result


def _with_alarm(seconds: float, call: Callable[[], T]) -> T:
    def raise_late(*_: Any) -> NoReturn:
        raise _LateError

    former = signal.signal(signal.SIGALRM, raise_late)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
        try:
            return call()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _end_process(ended: threading.Event, seconds: float, late: str) -> None:
    """End the process with code 2 and a message, unless the call ends first."""
    if not ended.wait(seconds):
        sys.stdout.flush()
        sys.stderr.write(f"error: {late}\n")
        sys.stderr.flush()
        _leave(2)
