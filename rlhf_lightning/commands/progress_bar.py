"""A progress bar on a terminal for slow work; elsewhere one plain line per finished part."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function to report progress to: the name of the part, how much of it is done, and the total."""
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
