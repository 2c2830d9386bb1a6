"""What Ctrl-C (SIGINT), SIGTERM and SIGHUP do to a command.

The first signal raises `Terminated` in the main thread, or at the end of a block that must complete (`held`). From then
on any exception counts as the stop, whatever a library turns the original one into: the command prints one line, which
says how to continue, and ends with 128 + the signal's number. Further signals have no effect, so that what is being
saved is saved; a second Ctrl-C ends the process immediately. A signal that the process was started with as ignored
(`nohup`, a job in a script's background) stays ignored.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from rlhf_lightning.errors import Terminated
from rlhf_lightning.outside_text import for_terminal

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)  # Windows has no SIGHUP
REPEAT = 0.2  # seconds within which a second SIGINT is a copy of the first: `make` and `uv` pass signals on
GRACE = 1.0  # seconds between SIGTERM and SIGKILL for child processes
_exit = os._exit  # what a command replaces while user code may call it


@dataclass
class _State:
    signum: int | None = None  # the first signal
    first: float | None = None  # when it arrived
    held: int = 0
    waiting: bool = False  # it arrived in a held block, and is still to be raised
    lost: bool = False  # it was raised where exceptions are dropped
    raised: weakref.ref[Terminated] | None = None
    follows: bool = False
    over: int | None = None  # the exit code, once nothing is left to stop
    advice: str | None = None
    children: set[int] = field(default_factory=set)  # those that existed before
    terminals: list[int] = field(default_factory=list)  # of the standard streams


_state = _State()
_former: dict[int, Any] = {}  # the handlers before ours; empty: not listening
_fork_hook_set = False


@contextlib.contextmanager
def answered(first: bool = True, follows: bool = False, for_good: bool = False) -> Iterator[None]:
    """Run a command so that a signal ends it with one line on stderr and exit code 128 + its number.

    Args:
        first: whether this is the first process of the run; others print nothing and exit with 0.
        follows: see `listening`.
        for_good: see `listening`.

    Raises:
        SystemExit: it was stopped.
    """
    with listening(follows, for_good):
        try:
            _unblock()
            yield
        except BaseException as error:
            signum = signal_of(error)
            if signum is None or _state.over is not None:
                raise
            _state.over = 128 + signum if first else 0
            if first:
                advice = "start it again with the same command" if _state.advice is None else _state.advice
                _say(f"stopped by {signal.Signals(signum).name}{advice and '; '}{advice}")
            end_processes(GRACE)
            raise SystemExit(_state.over) from None


@contextlib.contextmanager
def listening(follows: bool = False, for_good: bool = False) -> Iterator[None]:
    """Handle the signals inside; no effect within another such block or outside the main thread.

    Args:
        follows: the process is part of a run and leaves stopping to the first process (see `told`).
        for_good: keep the handlers until the process has ended; a signal then only makes it end sooner.
    """
    global _state
    if _former or threading.current_thread() is not threading.main_thread():
        yield
        return
    _state = _State(follows=follows, children=set(_descendants()), terminals=[n for n in (1, 2) if os.isatty(n)])
    code = 1
    undo = contextlib.ExitStack()
    try:
        _install(undo)
        if for_good:
            atexit.register(_ignore_signals)  # registered first, so that it is called last
        yield
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        raise
    finally:
        if for_good:
            _state.over = code
        else:
            undo.close()


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let the block finish before a signal is raised. Keep it short: files that belong together, a checkpoint."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    hold()
    try:
        yield
    finally:
        let_go()
        raise_what_waited()


def hold() -> None:
    """From now on only record signals, until `let_go`. For what does not fit into a `with` block."""
    _state.held += 1


def let_go() -> None:
    """End a `hold`. A signal that has arrived meanwhile is raised by `raise_what_waited`."""
    _state.held -= 1


def raise_what_waited() -> None:
    """Raise the signal that arrived while it was held, unless another block still holds it."""
    if _state.waiting and not _state.held and not _state.follows and _state.signum is not None:
        _state.waiting = False
        raise _stop(_state.signum)


def told() -> int | None:
    """Return the signal that this process has received; None if there is none."""
    return _state.signum


def tell(signum: int) -> None:
    """Act as if the process had received this signal."""
    _on_signal(signum)


def check() -> None:
    """Raise `Terminated` if the process was told to stop: for code that catches exceptions and continues."""
    if _state.signum is not None and not _state.follows:
        raise _stop(_state.signum)


def forget() -> None:
    """Continue after a signal that has ended only a part of the work, such as one answer of a conversation."""
    _state.signum = _state.first = _state.advice = None
    _state.waiting = _state.lost = False


def signal_of(error: BaseException) -> int | None:
    """Return the signal behind an exception; None if it is not a stop.

    Lightning turns a KeyboardInterrupt into `sys.exit(1)`.
    """
    if _state.signum is not None and not _state.follows:
        return _state.signum
    if isinstance(error, Terminated):
        return error.signum
    interrupted = isinstance(error.__context__, KeyboardInterrupt) and isinstance(error, SystemExit)
    return signal.SIGINT if interrupted or isinstance(error, KeyboardInterrupt) else None


@contextlib.contextmanager
def advising(advice: Callable[[], str]) -> Iterator[None]:
    """If the block is stopped, say how to continue, by advice requested then. The innermost block wins."""
    try:
        yield
    except BaseException as error:
        if signal_of(error) is not None and _state.advice is None:
            with contextlib.suppress(Exception):
                _state.advice = advice()
        raise


@contextlib.contextmanager
def kept_back() -> Iterator[None]:
    """Block signals while the process restarts itself with `os.exec*` inside; the next `answered` receives them.

    If it does not restart, they arrive at the end of the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _install(undo: contextlib.ExitStack) -> None:
    global _fork_hook_set
    if not _fork_hook_set and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)
        _fork_hook_set = True
    undo.callback(_forget_all)
    for signum in SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:
            _former[signum] = signal.signal(signum, _on_signal)
            undo.callback(signal.signal, signum, _former[signum])
    undo.enter_context(_second_interrupt())
    undo.callback(setattr, sys, "unraisablehook", sys.unraisablehook)
    sys.unraisablehook = _without_stops(sys.unraisablehook)


def _unblock() -> None:
    """Receive what `kept_back` has blocked."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _former)


def _ignore_signals() -> None:
    """Ignore signals from here on: Python's own clean-up would let one kill the process."""
    for signum in _former:
        signal.signal(signum, signal.SIG_IGN)


def _forget_all() -> None:
    global _state
    _former.clear()
    _state = _State()


def _on_signal(signum: int, *_: Any) -> None:
    if _state.over is not None:
        _leave(_state.over)
    if _state.signum is not None and not _state.lost:
        return
    if signum == getattr(signal, "SIGHUP", None):
        _do_without_terminal()
    _state.signum, _state.lost = _state.signum or signum, False
    if _state.held or _state.follows:
        _state.waiting = True
    else:
        raise _stop(_state.signum)


def _stop(signum: int) -> Terminated:
    """Return the exception, which is raised again, a moment later, if somebody drops it and continues.

    Python does so in a finaliser, and so do libraries that catch everything. It stays alive while it propagates, or as
    the cause of another exception.
    """
    error = Terminated(signum)
    _state.raised = weakref.ref(error, _when_dropped)
    return error


def _when_dropped(reference: weakref.ref[Terminated]) -> None:
    if reference is _state.raised and _state.signum is not None and _state.over is None:
        _state.lost, _state.first = True, time.monotonic()
        threading.Timer(REPEAT / 4, _once_more, (_state.signum,)).start()


@contextlib.contextmanager
def _second_interrupt() -> Iterator[None]:
    """Notice a second Ctrl-C even while the main thread is in a library that does not let Python run a handler."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    former = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(former)
        os.close(writing)


def _watch(reading: int) -> None:
    while numbers := os.read(reading, 64):
        now = time.monotonic()
        for number in numbers:
            if number not in _former:
                continue
            if _state.first is None:
                _state.first = now
            elif number == signal.SIGINT and now - _state.first >= REPEAT and not _state.follows:
                _leave_at_once()
    os.close(reading)


def _leave_at_once() -> NoReturn:
    if _state.over is None:
        with contextlib.suppress(OSError):
            os.write(2, b"stopped at once\n")
    end_processes(0.0)
    _exit(128 + signal.SIGINT if _state.over is None else _state.over)


def _leave(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    _exit(code)


def _without_stops(former: Callable[[Any], object]) -> Callable[[Any], object]:
    """Return a hook for exceptions that Python drops: it prints them, except for a stop, which is raised again."""
    return lambda dropped: None if isinstance(dropped.exc_value, Terminated) else former(dropped)


def _once_more(signum: int) -> None:
    """Send a real signal to the main thread, which may be waiting in a call that only a signal ends."""
    identity = threading.main_thread().ident
    if _state.lost and identity is not None and hasattr(signal, "pthread_kill"):
        signal.pthread_kill(identity, signum)


def _in_child() -> None:
    """Handle signals in a fork (a loader's worker): the terminal's signals are for the first process to answer."""
    global _state
    if not _former:
        return
    signal.set_wakeup_fd(-1)
    for signum in _former:
        signal.signal(signum, signal.SIG_DFL if signum == signal.SIGTERM else lambda *_: None)
    _former.clear()
    _state = _State()


def _do_without_terminal() -> None:
    """Make sure that printing does not fail once the terminal is gone."""
    for number in _state.terminals:
        if not os.isatty(number):
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _say(line: str) -> None:
    """Print the line, even if standard output still has buffered text and is a pipe that nobody reads."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    with contextlib.suppress(OSError, ValueError):
        text = for_terminal(line).replace("\n", "\\n")  # spaces stay, so that the command can be pasted
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def end_processes(grace: float) -> None:
    """End the processes that this one has started since it began listening, and their descendants.

    Args:
        grace: seconds between SIGTERM and SIGKILL; 0 sends only SIGKILL.
    """
    started = [pid for pid in _descendants() if pid not in _state.children and not _cleans_up(pid)]
    if grace:
        _send(started, signal.SIGTERM)
        limit = time.monotonic() + grace
        while any(_runs(pid) for pid in started) and time.monotonic() < limit:
            time.sleep(0.01)
    _send([pid for pid in started if _runs(pid)], getattr(signal, "SIGKILL", signal.SIGTERM))


def _send(pids: list[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signum)


def _descendants() -> list[int]:
    """Return the processes that this one has started, and theirs; none if the system has no /proc."""
    found, left = [], [os.getpid()]
    while left:
        for file in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError, ValueError):
                pids = [int(word) for word in file.read_text().split()]
                found += pids
                left += pids
    return found


def _runs(pid: int) -> bool:
    """Return whether a process still runs, rather than only its exit code being left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def _cleans_up(pid: int) -> bool:
    """Return whether a process is Python's own that frees shared memory after this one, and then ends."""
    try:
        return b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
