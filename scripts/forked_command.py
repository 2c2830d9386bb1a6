"""Run a command in a fork of this process, which has imported the heavy libraries once."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from rlhf_lightning.commands import entry
from rlhf_lightning.stopping import SIGNALS

PRELOADED = (
    "torch",
    "lightning.pytorch",
    "transformers",
    "peft",
    "datasets",
    "torchmetrics",
    "mlflow",
    "hydra",
    "rich",
)


def preload() -> None:
    """Import what every command would import, before the first fork; one thread, so that forks are safe.

    A shell starts background jobs with SIGINT ignored, nohup with SIGHUP, and the commands would keep it so.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    from rlhf_lightning.process.quiet import quieten

    os.environ["HF_HUB_OFFLINE"] = "1"
    quieten()
    for name in PRELOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    gc.freeze()


def in_a_fork(work: Callable[[], object]) -> None:
    """Call something in a fork of this process, which keeps what it imports and changes to itself."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError("the work in the fork failed, see above")


def run_command(
    command: str,
    words: list[str],
    folder: Path,
    prepare: Callable[[Path], object],
    scratch: Path,
    seconds: float,
    typed: bytes = b"",
) -> tuple[int | None, str, str]:
    """Run `rlhf-<command> words` in a folder.

    Args:
        command: its function in `rlhf_lightning.commands.entry`.
        words: the command line.
        folder: the working folder.
        prepare: called in the child before the command, with the folder.
        scratch: where standard output and error are stored meanwhile.
        seconds: time after which it is killed.
        typed: the content of standard input.

    Returns:
        exit code (None: killed), standard output, standard error.
    """
    out, err, given = scratch / "out", scratch / "err", scratch / "in"
    given.write_bytes(typed)
    code = _wait(child_of_command(command, words, folder, prepare, (given, out, err)), seconds)
    return code, out.read_text(errors="replace"), err.read_text(errors="replace")


def child_of_command(
    command: str, words: list[str], folder: Path, prepare: Callable[[Path], object], files: tuple[Path, Path, Path]
) -> int:
    """Start `rlhf-<command> words` with these files as standard input, output and error; returns the process's id.

    Signals wait until the command handles them: a real process would have started earlier.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            _child(command, words, folder, prepare, files)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _child(
    command: str, words: list[str], folder: Path, prepare: Callable[[Path], object], files: tuple[Path, Path, Path]
) -> None:
    """Run the command in the child; never return."""
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(os.open(files[0], os.O_RDONLY), 0)
        for number in (1, 2):
            os.dup2(os.open(files[number], os.O_WRONLY | os.O_CREAT), number)
        sys.path[:] = [entry for entry in sys.path if entry not in ("", str(Path(__file__).parent))]
        prepare(folder)
        sys.argv = [f"rlhf-{command}", *words]
        getattr(entry, command)()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _wait(pid: int, seconds: float) -> int | None:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None
