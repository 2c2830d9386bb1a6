"""User code that ends the process in the middle of a command, as if it had succeeded."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rlhf_lightning.errors import left_by_hand

# In these, `sys.exit` is legitimate: for `--help`, or for an option that only Hydra handles.
_MAY_LEAVE = ("hydra", "argparse", "lightning")


@contextmanager
def answered_exits() -> Iterator[None]:
    """Let `os._exit` in this process print a line and end with code 2.

    It runs no `finally` and no handler, and nothing unsaved survives it, so this is the only place to notice it.
    Processes started from here (workers of a data loader) may exit as they like. `SIGKILL` and a crash in C code cannot
    be caught; their exit code is not 0.
    """
    process, leave = os.getpid(), os._exit

    def leave_with_a_word(status: int) -> NoReturn:
        caller = sys._getframe(1)
        if os.getpid() == process:
            sys.stdout.flush()
            sys.stderr.write(
                f"error: {caller.f_code.co_filename}, line {caller.f_lineno}: it called os._exit({status!r}), which "
                "ends the command at once; raise an exception there, or remove the call\n"
            )
            sys.stderr.flush()
            leave(2)
        leave(status)

    os._exit = leave_with_a_word
    try:
        yield
    finally:
        os._exit = leave


def exit_of_others(error: SystemExit) -> str | None:
    """Return the message for a `sys.exit` that neither this package nor its command-line libraries called."""
    if not left_by_hand(error, *_MAY_LEAVE):
        return None
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"{last.filename}, line {last.lineno}: it called sys.exit({error.code!r}) before the command was done; raise "
        "an exception there, or remove the call"
    )
