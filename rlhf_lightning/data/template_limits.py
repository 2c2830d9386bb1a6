"""Time and memory limits for code that came with a model: its chat template."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rlhf_lightning.errors import UserError

SECONDS = 5.0  # a template takes less than a millisecond
BYTES = 2**30  # on top of the process's own
CHARACTERS = 10**7  # of the output, or a hundred times the input
SLOW, PATIENCE = 0.5, 60.0  # seconds per call, and in total: thousands of rows would take hours
_STATM = Path("/proc/self/statm")


class StoppedError(UserError):
    """A template has hit a limit, and would again with other messages."""


_spent: dict[str, tuple[int, float]] = {}  # template -> calls, seconds


@contextlib.contextmanager
def running(template: str) -> Iterator[None]:
    """Run a template: within `limited`, without uninterruptible operations, and not slowly for row after row.

    Raises:
        TimeoutError: it took longer than a template may, or has been slow all along.
        MemoryError: it needs too much memory.
    """
    if _has_power(template):
        raise TimeoutError("it raises a number to a power (**), which no limit can interrupt")
    began = time.monotonic()
    with limited():
        yield
    calls, seconds = _spent.get(template, (0, 0.0))
    calls, seconds = calls + 1, seconds + time.monotonic() - began
    _spent[template] = calls, seconds
    if seconds > PATIENCE and seconds > SLOW * calls:
        raise TimeoutError(f"it takes {seconds / calls:.1f} s for every row")


@functools.lru_cache(maxsize=32)
def _has_power(template: str) -> bool:
    """Return whether the template has the operator **; before arguments (`f(**more)`) it is something else."""
    from jinja2 import Environment
    from jinja2.exceptions import TemplateSyntaxError

    try:
        tokens = [token for token in Environment().lex(template) if token[1] != "whitespace"]
    except TemplateSyntaxError:
        return False  # it cannot be rendered either
    pairs = zip([(0, "", ""), *tokens], tokens, strict=False)
    return any(token[1:] == ("operator", "**") and before[2] not in ("(", ",") for before, token in pairs)


def check_size(rendered: str, messages: Any) -> None:
    """Raise MemoryError for a text out of all proportion to the messages: no model could read it."""
    longest = max(CHARACTERS, 100 * len(str(messages)))
    if len(rendered) > longest:
        raise MemoryError(f"it makes {len(rendered):,} characters of a row; at most {longest:,} are taken")


@contextlib.contextmanager
def limited(seconds: float | None = None, extra_bytes: int = BYTES) -> Iterator[None]:
    """Stop the code inside after a time, or when it needs this much memory on top of the process's.

    The time is limited in the main thread only, the memory on Linux only.

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
    except MemoryError as error:
        if error.args:
            raise
        raise MemoryError(f"it needs more than {extra_bytes >> 20} MiB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
