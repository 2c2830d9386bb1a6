"""Running this package's small programs beside the training process: with limits, and without its environment."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_HERE = Path(__file__).parent
_GRACE = 10.0  # seconds for a program to begin and to end
_START = 120.0  # seconds to import sympy on a busy machine


def _environment(folder: str) -> dict[str, str]:
    """Return all that a program sees of the environment: no keys, no tokens."""
    return {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": folder, "TMPDIR": folder}


def passes(code: str, tests: str, seconds: float, megabytes: int) -> bool:
    """Return whether code and then tests run to their end within the limits, in an empty folder of their own."""
    job = json.dumps({"code": code, "tests": tests, "seconds": seconds, "megabytes": megabytes})
    with tempfile.TemporaryDirectory(prefix="rlhf-code-", ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_HERE / "code_runner.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=_environment(folder),
            start_new_session=True,
        )
        try:
            said, _ = process.communicate(job.encode("ascii"), timeout=seconds + _GRACE)
        except (subprocess.TimeoutExpired, OSError):
            return False
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return said == b"1"


class MathWorker:
    """A process that compares answers one by one; it is replaced if one takes too long.

    Args:
        megabytes: its memory.
    """

    def __init__(self, megabytes: int = 4096) -> None:
        self.megabytes = megabytes
        self._process: subprocess.Popen[bytes] | None = None
        self._read = b""

    def compare(self, reference: str, text: str, seconds: float) -> float | None:
        """Return 1.0 if the text's answer equals the reference, else 0.0; None if the reference cannot be read."""
        if self._process is None or self._process.poll() is not None:
            self._begin()
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([reference, text]).encode("ascii") + b"\n")
            self._process.stdin.flush()
            answer = self._line(seconds)
        except OSError:  # it has died, such as of its memory
            answer = None
        if answer is None:
            self.close()
        return None if answer == b"null" else float(answer == b"1")

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process, self._read = None, b""

    def _begin(self) -> None:
        self.close()
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_HERE / "math_worker.py"), json.dumps(sys.path), str(self.megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(tempfile.gettempdir()),
        )
        if self._line(_START) != b"ready":
            self.close()
            raise RuntimeError("the process with math-verify does not start; try `python -c 'import math_verify'`")

    def _line(self, seconds: float) -> bytes | None:
        """Return the next line; None if there is none by then, or the process has ended."""
        assert self._process is not None and self._process.stdout is not None
        stream, end = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([stream], [], [], max(0.0, end - time.monotonic()))
            part = os.read(stream, 4096) if ready else b""
            if not part:
                return None
            self._read += part
        line, _, self._read = self._read.partition(b"\n")
        return line
