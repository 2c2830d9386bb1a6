"""A program that runs a response's code under limits; `python -I code_runner.py`, without this package.

It reads a job as JSON: code, tests, seconds and megabytes. A child with the limits runs code and tests; this process
watches it, ends it with everything that it has started, and writes `1` if the tests were reached and passed, else `0`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
from typing import Any

MOST_PROCESSES = 16  # that a response's code may have at a time
LARGEST_FILE = 16 * 2**20  # bytes
_NOBODY = 65534
_SUBREAPER, _NO_NEW_PRIVILEGES = 36, 38  # of Linux's prctl


def main() -> None:
    """Run one job."""
    job = json.loads(sys.stdin.buffer.read())
    _prctl(_SUBREAPER)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run(job, writer)
    os.close(writer)
    passed = _watch(child, reader, time.monotonic() + job["seconds"])
    _end_all(child)
    os.write(1, b"1" if passed else b"0")


def _watch(child: int, reader: int, end: float) -> bool:
    """Return whether the child has reported success by then."""
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], min(left, 0.01))
        if ready:
            return os.read(reader, 1) == b"1"
        if len(_descendants()) > MOST_PROCESSES:
            return False
    return False


def _run(job: dict[str, Any], writer: int) -> None:
    """Run code and tests in this process, and end it."""
    status = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        _limit(job)
        names: dict[str, Any] = {"__name__": "__main__"}
        exec(compile(job["code"], "<response>", "exec"), names)
        exec(compile(job["tests"], "<tests>", "exec"), names)
        os.write(writer, b"1")
        status = 0
    finally:  # a SystemExit of the code is a failure too
        os._exit(status)


def _limit(job: dict[str, Any]) -> None:
    memory = int(job["megabytes"]) * 2**20
    for kind, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(job["seconds"]) + 1),
        (resource.RLIMIT_FSIZE, LARGEST_FILE),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))
    _prctl(_NO_NEW_PRIVILEGES)
    if os.geteuid() == 0 and _readable_by_others(os.__file__) and _readable_by_others(sys.executable):
        with contextlib.suppress(OSError):
            os.chown(".", _NOBODY, _NOBODY)
            os.setgroups([])
            os.setgid(_NOBODY)
            os.setuid(_NOBODY)
    if os.geteuid() == 0:
        os.nice(5)  # the next limit does not hold for root, so the watching process must stay ahead of a fork bomb
    most = _threads_of(os.geteuid()) + 2 * MOST_PROCESSES
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (most, most))


def _threads_of(user: int) -> int:
    """Return how many threads a user has, which is what the limit on processes counts."""
    found = 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError):
                found += len(os.listdir(f"/proc/{name}/task")) if os.stat(f"/proc/{name}").st_uid == user else 0
    return found


def _readable_by_others(path: str) -> bool:
    path = os.path.realpath(path)
    above = os.path.dirname(path)
    while above != os.path.dirname(above):
        if not os.stat(above).st_mode & 0o001:
            return False
        above = os.path.dirname(above)
    return bool(os.stat(path).st_mode & 0o004)


def _prctl(option: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        import ctypes

        ctypes.CDLL(None).prctl(option, 1, 0, 0, 0)


def _descendants() -> list[int]:
    """Return the processes below this one; orphans among them stay below it."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    found, new = set[int](), {os.getpid()}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return sorted(found)


def _end_all(child: int) -> None:
    """Kill everything that the child has started; stopped first, so that nothing starts meanwhile."""
    for _ in range(100):
        left = _descendants() or [child]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in left:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not _descendants():
            return
        time.sleep(0.01)


if __name__ == "__main__":
    main()
