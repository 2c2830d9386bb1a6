"""A model's lineage: the runs it went through, back to the model that the first one began from."""

from __future__ import annotations

from rlhf_lightning.runs.run import Run, read_run


def check_history(model: str) -> None:
    """Read the runs that a model went through, which its descendants' cards list. Raises UserError."""
    if (run := read_run(model)) is not None:
        lineage(run)


def lineage(run: Run) -> tuple[list[Run], str]:
    """Return the runs before this one, nearest first, and the model that the first of them began from.

    A path in a run's config is relative to where that run was started; if it does not exist, the chain ends with it.
    """
    runs: list[Run] = []
    seen = {run.folder.resolve()}
    begins_from = run.begins_from
    while (former := read_run(begins_from)) is not None and former.folder.resolve() not in seen:
        runs.append(former)
        seen.add(former.folder.resolve())
        begins_from = former.begins_from
    return runs, begins_from
