"""What follows training: first the model's folder, complete, then steps that cannot lose it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import remove_tree
from rlhf_lightning.errors import BlownUpError, reason, writing
from rlhf_lightning.hashes import FILE, write_hashes
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.stopping import check, held


class Aftermath:
    """Steps after training: a failed one is noted, and the others follow."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Note a failure in the block as a problem with this name."""
        try:
            yield
        except Exception as error:
            check()  # else a stop that a library turned into another exception would look like a problem
            self.note(name, error)

    def note(self, name: str, error: Exception) -> None:
        """Add a problem: its name, and what happened in one line."""
        self.problems.append(f"{name} ({reason(error)})")


def fit(trainer: Any, call: Callable[[], Any], aftermath: Aftermath) -> None:
    """Train. A failure after the last step (a callback's end, a logger's flush) only goes to the aftermath."""
    try:
        call()
    except BlownUpError:
        raise
    except Exception as error:
        check()
        if trainer.global_step == 0 or not trainer.fit_loop.done:
            raise
        aftermath.note("the end of training", error)


def export_model(export: Callable[[Path], None], run_dir: Path) -> None:
    """Write `model/` next to its place first, so that it is complete and has no files of an earlier run.

    Call it on every process, because sharded weights are gathered; the first process writes.
    """
    with writing(run_dir / "model", as_a_whole=True):
        _export_beside(export, run_dir)


def _export_beside(export: Callable[[Path], None], run_dir: Path) -> None:
    new, former, target = run_dir / ".model.new", run_dir / ".model.former", run_dir / "model"
    if first_process():
        for left_over in (new, former):
            remove_tree(left_over)
    try:
        if first_process():
            new.mkdir(parents=True)  # separately, so as not to follow a planted link
        export(new)
        if first_process() and new.is_dir() and not (new / FILE).is_file():  # an algorithm with its own export
            write_hashes(new)
    except BaseException:
        if first_process():
            remove_tree(new)
        raise
    if first_process():
        with held():
            if target.exists() or target.is_symlink():
                os.replace(target, former)
            os.replace(new, target)
            remove_tree(former)
