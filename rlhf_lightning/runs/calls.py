"""Pipeline stages that call a function: collecting, labelling, exporting, or a user's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.run import Run
from rlhf_lightning.source.constructors import signature

HANDED = {"model_from": "model", "reward_from": "reward_model", "data_from": "data"}  # folders of earlier stages
_OF_TRAINING = ("experiment", "overrides")


def call_config(name: str, stage: Mapping[str, Any], pipeline: str, run_dir: Path) -> dict[str, Any]:
    """Return the config of a stage that calls a function, with its folder and those of earlier stages as arguments.

    Raises:
        UserError: a key of a stage that trains, no function, or one that does not take an earlier stage's folder.
    """
    key, call = f"stages.{name}", stage["call"]
    for found in filter(stage.get, _OF_TRAINING):
        raise UserError(f"{key}.{found}: the stage calls a function, whose arguments are {key}.call.<key>")
    if not call.get("_target_"):
        raise UserError(f"{key}.call._target_: missing; give the dotted path of a function")
    handed = {HANDED[each]: _folders(run_dir, stage[each]) for each in HANDED if stage.get(each)}
    taken = signature(call["_target_"])
    for each, argument in HANDED.items():
        if argument in handed and argument not in taken.parameters and not taken.takes_more:
            raise UserError(f"{key}.{each}: {call['_target_']} has no argument `{argument}` to take it")
    folder = str(run_dir / name)
    return {"name": f"{pipeline}-{name}", "run_dir": folder, "call": {**call, "folder": folder, **handed}}


def _folders(run_dir: Path, stage: str | list[str]) -> str | list[str]:
    """Return the folder of a stage, or those of an ensemble's members."""
    return [str(run_dir / member) for member in stage] if isinstance(stage, list) else str(run_dir / stage)


class CalledRun(Run):
    """A stage that calls a function: after a stop it is called again."""

    def _take_identity(self) -> None:
        """Do nothing: there are no checkpoints."""

    def carry_out(self) -> None:
        """Call the function in its folder, in the first process, and store its result as the summary.

        Raises:
            UserError: it fails, or returns anything but metrics by name.
            WaitingError: it waits for people.
        """
        with self.in_place():
            self.begin()
            if first_process():
                section = {key: value for key, value in self.config["call"].items() if key != "_target_"}
                target = self.config["call"]["_target_"]
                module, _, function = target.rpartition(".")
                with blaming(f"call: {target} has failed"):
                    figures = getattr(importlib.import_module(module), function)(**section)
                if not isinstance(figures, Mapping):
                    raise UserError(f"call: {target} returned {type(figures).__name__}; must be figures by name")
                self.summary = {**figures, "wall_seconds": self.seconds()}
                self.end()
                said = ", ".join(f"{key} {_shown(value)}" for key, value in figures.items() if value is not None)
                print(f"{said}  [{self.seconds():.0f} s]", flush=True)
            _wait_for_the_first()


def _wait_for_the_first() -> None:
    """Let the other processes of a distributed pipeline wait for the first one's result."""
    distributed = getattr(sys.modules.get("torch"), "distributed", None)
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.barrier()


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
