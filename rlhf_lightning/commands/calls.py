"""Stages of a pipeline that call a function: collecting, labelling, exporting, or something of the user's own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from rlhf_lightning.config.checks import check_no_split_of_a_file, missing_locally, will_be_made
from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.run import Run

_READ = ("prompts", "rows", "guidelines")  # arguments that name a file


def check_call(config: Mapping[str, Any], made: Collection[str]) -> None:
    """Raise UserError for a file that a call reads, and that neither is there nor will be made.

    Args:
        config: of the stage.
        made: folders that will exist by then.
    """
    for key in _READ:
        path = config["call"].get(key)
        if isinstance(path, str) and not will_be_made({}, path, made):
            if missing_locally(path):
                raise UserError(f"call.{key}: {path} does not exist")
            check_no_split_of_a_file(f"call.{key}", path)


def carry_out_call(run: Run) -> None:
    """Call the function of a stage in its folder, in the first process, and keep what it returns as the summary.

    Raises:
        UserError: it fails, or returns something else than figures by name.
    """
    from rlhf_lightning.commands.build import build
    from rlhf_lightning.models.release import release_memory

    with run.in_place():
        run.begin()
        if first_process():
            target = run.config["call"]["_target_"]
            with blaming(f"call: {target} has failed"):
                figures = build(run.config["call"], "call")
            if not isinstance(figures, Mapping):
                raise UserError(f"call: {target} returned {type(figures).__name__}; must be figures by name")
            run.summary = {**figures, "wall_seconds": run.seconds()}
            run.end()
            said = ", ".join(f"{key} {_shown(value)}" for key, value in figures.items() if value is not None)
            print(f"{said}  [{run.seconds():.0f} s]", flush=True)
        _wait_for_the_first()
    release_memory()


def _wait_for_the_first() -> None:
    """Let the other processes of a run wait for what the first one makes."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
