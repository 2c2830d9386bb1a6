"""Where a model comes from: the runs it went through, down to the model the first of them began from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.hashes import check_files
from rlhf_lightning.source.declarations import Declaration, declaration

REMEDY = "restore it, or remove it: the model's card then tells nothing of that run"
_SECTIONS = ("model", "algorithm", "data", "reward", "logger")


@dataclass(frozen=True)
class TrainingRun:
    """A run folder: the composed config and the content of its summary.json (empty before its end)."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def algorithm(self) -> str:
        """The name of the LightningModule's class."""
        return str(self.config["algorithm"].get("_target_", "")).rpartition(".")[2]

    @property
    def declaration(self) -> Declaration:
        """What that class declares."""
        return declaration(self.config)

    @property
    def begins_from(self) -> str:
        """The model that the run started with, as it was given."""
        return str(self.config["model"].get("path"))

    @property
    def model_folder(self) -> Path:
        """Where its trained model is."""
        return self.folder / "model"

    @property
    def is_reward_model(self) -> bool:
        """Whether it trained a score rather than a policy."""
        return self.declaration.scores

    @property
    def quantized(self) -> bool:
        """Whether it was trained on 4-bit weights."""
        return bool(self.config["model"].get("quantization"))

    @property
    def adapter_base(self) -> str | None:
        """The base of its model, if that is an adapter; None for a whole model."""
        file = self.model_folder / "adapter_config.json"
        if not file.is_file():
            return None
        return str(json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"])


def read_run(path: str | Path) -> TrainingRun | None:
    """The training run whose folder, or the `model/` in it, this is; None for any other folder or name."""
    folder = Path(path)
    if folder.name == "model" and (folder.parent / "config.yaml").is_file():
        folder = folder.parent
    if not (folder / "config.yaml").is_file():
        return None
    check_files(folder, ("config.yaml", "summary.json"))
    file = folder / "config.yaml"
    with blaming(f"{file} cannot be read", REMEDY):
        config: Any = OmegaConf.to_container(OmegaConf.load(file))
    if not isinstance(config, dict) or not {"model", "algorithm"} <= set(config):
        return None  # a pipeline's, or another program's
    for section in _SECTIONS:
        if not isinstance(config.get(section) or {}, dict):
            raise UserError(f"{file}: {section} is a {type(config[section]).__name__}, not a section; {REMEDY}")
    file, summary = folder / "summary.json", {}
    with blaming(f"{file} cannot be read", REMEDY):
        if file.is_file():
            summary = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(summary, dict):
            raise ValueError("it is not a JSON object")
    return TrainingRun(folder, config, summary)


def check_history(model: str) -> None:
    """Read the runs that a model went through, which its descendants' cards tell. Raises UserError."""
    if (run := read_run(model)) is not None:
        lineage(run)


def lineage(run: TrainingRun) -> tuple[list[TrainingRun], str]:
    """The runs before this one, the nearest first, and the model that the first of them began from.

    A path in a run's config is relative to where that run was started; where it leads nowhere, the chain ends with it.
    """
    runs: list[TrainingRun] = []
    seen = {run.folder.resolve()}
    begins_from = run.begins_from
    while (former := read_run(begins_from)) is not None and former.folder.resolve() not in seen:
        runs.append(former)
        seen.add(former.folder.resolve())
        begins_from = former.begins_from
    return runs, begins_from
