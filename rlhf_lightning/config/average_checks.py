"""Checks of runs whose weights are averaged: only models that come from the same weights have a meaningful mean."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.config.inputs import missing_locally
from rlhf_lightning.errors import UserError
from rlhf_lightning.file_hashes import sha256_of
from rlhf_lightning.hashes import check_model_files
from rlhf_lightning.runs.lineage import lineage
from rlhf_lightning.runs.run import Run

_OF_A_MODEL = ("config.json", "adapter_config.json")
_WEIGHTS = (".safetensors", ".bin")
_KNOWN = ("model", "adapter_model", "pytorch_model")  # names of weight files that loading a model reads


def check_average(config: Mapping[str, Any]) -> None:
    """Raise UserError for settings of an average that contradict each other; needs no run."""
    paths, weights = config.get("average"), config.get("weights")
    if paths is None:
        if weights is not None:
            raise UserError("weights: only an average has weights; give average=[run1,run2], or leave weights out")
        return
    if config.get("run") is not None:
        raise UserError("run: found beside average; give one of the two")
    if len(paths) < 2:
        raise UserError(f"average: found {len(paths)} run{'s' * (len(paths) != 1)}; must be at least two")
    for i, path in enumerate(paths):
        if Path(path).resolve() in (Path(each).resolve() for each in paths[:i]):
            raise UserError(f"average: {path} is there twice; give weights=[2,1,...] to count a run more than others")
    if weights is not None and len(weights) != len(paths):
        raise UserError(f"weights: found {len(weights)} numbers for {len(paths)} runs; give one for each")
    if config.get("form") != "merged":
        raise UserError(
            "form: the mean of several LoRA adapters is not an adapter (the mean of the products BA is not the product "
            "of the means); use form=merged"
        )


def check_same_kind(runs: Sequence[Run]) -> None:
    """Raise UserError unless all runs trained the same kind of model, and all come from the same weights."""
    first = runs[0]
    for run in runs:
        _check_files(run)
        if run.is_reward_model != first.is_reward_model:
            of, other = (each.folder for each in ((run, first) if run.is_reward_model else (first, run)))
            raise UserError(f"average: {of} is a reward model and {other} is a policy; average one kind")
    marks = [_origin(run) for run in runs]
    for run, (name, mark) in zip(runs, marks, strict=True):
        if mark != marks[0][1]:
            raise UserError(
                f"average: {first.folder} comes from {marks[0][0]} and {run.folder} from {name}, which are different "
                "models, so the mean of their weights has no meaning; average runs from the same model"
            )


def _check_files(run: Run) -> None:
    """Raise UserError for a model with weights beside the network's own, which an average would lose."""
    for path in sorted(run.model_folder.rglob("*")):
        if path.suffix in _WEIGHTS and not path.name.startswith(_KNOWN):
            raise UserError(f"average: {path} holds weights beside the network's own, which cannot be averaged yet")


def _origin(run: Run) -> tuple[str, str]:
    """Return the model at the beginning of a run's lineage, and a mark that equal models share."""
    former, name = lineage(run)
    began = [run, *former][-1]
    if missing_locally(name):
        raise UserError(
            f"average: {began.folder} began from {name}, which does not exist here, so nobody can tell whether the "
            "runs come from the same model; start the command where that run was started, or restore it"
        )
    folder = Path(name)
    if not folder.is_dir():
        return name, f"{name}@{began.config['model'].get('revision')}"
    check_model_files(folder, key="average")
    files = sorted(path for path in folder.iterdir() if path.name in _OF_A_MODEL or path.suffix in _WEIGHTS)
    marks = "\n".join(f"{path.name} {sha256_of(path)}" for path in files)
    return name, hashlib.sha256(marks.encode()).hexdigest()
