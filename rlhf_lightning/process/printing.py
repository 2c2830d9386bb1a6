"""Tables and progress bars on a terminal."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console


class Terminal(Console):
    """A console that leaves a closed pipe (`| head`) to the command, as `print` does, instead of exiting."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError
