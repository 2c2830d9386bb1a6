"""A bar on a terminal for what takes long; elsewhere a plain line when a part of it is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Give what is told of the progress: the name of the part, how much of it is done, of how much."""
    if not sys.stderr.isatty():
        yield _line
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rlhf_lightning.process.printing import Terminal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Terminal(stderr=True)) as progress:
        parts = {}

        def watch(part: str, done: int, of: int) -> None:
            if part not in parts:
                parts[part] = progress.add_task(part, total=of)
            progress.update(parts[part], completed=done, total=of)

        yield watch


def _line(part: str, done: int, of: int) -> None:
    if done == of:
        sys.stderr.write(f"{part}: {done} of {of}\n")
