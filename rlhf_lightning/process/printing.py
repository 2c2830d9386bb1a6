"""Tables and bars on a terminal."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console


class Terminal(Console):
    """A console that leaves a reader who has gone (`| head`) to the command, as `print` does, and does not exit."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError
