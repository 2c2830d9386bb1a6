"""The command that a run was started with, for those who look at the run later."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class GivenCommand:
    """A command with its overrides.

    Attributes:
        name: such as `rlhf-train`; empty where Python has called.
        words: overrides of this run.
        varied: of a sweep, those that are not the same in all its runs; None of a single run.
    """

    name: str = ""
    words: tuple[str, ...] = ()
    varied: tuple[str, ...] | None = None

    def line(self) -> str:
        """Return what is typed in a shell to do it again.

        >>> print(GivenCommand("rlhf-train", ("experiment=ppo", "name='a b'")).line())
        rlhf-train experiment=ppo 'name='"'"'a b'"'"''
        """
        return shlex.join([self.name, *self.words]) if self.name else ""


_given: ContextVar[GivenCommand | None] = ContextVar("given", default=None)


def given_command() -> GivenCommand:
    """Return the command that is being carried out."""
    return _given.get() or GivenCommand()


@contextlib.contextmanager
def carrying_out(name: str, words: Sequence[str], typed: Sequence[str] | None = None) -> Iterator[None]:
    """Let runs in this block say what they were started with.

    Args:
        name: of the command.
        words: overrides of this run.
        typed: of a sweep, what was typed for all its runs.
    """
    varied = None if typed is None else tuple(word for word in words if word not in typed)
    token = _given.set(GivenCommand(name, tuple(words), varied))
    try:
        yield
    finally:
        _given.reset(token)
