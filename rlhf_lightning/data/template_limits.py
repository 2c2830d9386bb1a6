"""Limits of time and memory around code that came with a model: its chat template."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 5.0  # a template takes less than a millisecond
BYTES = 2**30  # on top of what the process has
_STATM = Path("/proc/self/statm")


@contextlib.contextmanager
def limited(seconds: float | None = None, extra_bytes: int = BYTES) -> Iterator[None]:
    """Stop what runs inside after a time, or when it asks for more memory than this on top of the process's.

    The time is limited in the main thread, the memory on Linux.

    Raises:
        TimeoutError: it took longer.
        MemoryError: it needs more.
    """
    with _limited_memory(extra_bytes), _limited_time(SECONDS if seconds is None else seconds):
        yield


@contextlib.contextmanager
def _limited_time(seconds: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> NoReturn:
        raise TimeoutError(f"it has not ended within {seconds:g} s")

    former_handler = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    former, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        rest = max(former - (time.monotonic() - began), 1e-3) if former else 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former_handler)
        if rest:
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


@contextlib.contextmanager
def _limited_memory(extra_bytes: int) -> Iterator[None]:
    if not _STATM.is_file():
        yield
        return
    import resource

    size = int(_STATM.read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size + extra_bytes
    if soft != resource.RLIM_INFINITY and soft <= wanted:
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    except MemoryError:
        raise MemoryError(f"it needs more than {extra_bytes >> 20} MiB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
