"""metrics.jsonl: what was logged, one JSON object a line, in the run folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.lines import keep_lines


class MetricsFile(Callback):
    """Writes every set of logged metrics as one line `{"step": 12, "epoch": 3, "train/loss": 0.7, ...}`.

    `step` is the number of optimiser steps done when the line was written. A resumed run first drops the lines past
    the step it resumes from (they will be written again), and half a line left by a kill; a new run starts the file
    anew. NaN and infinities become null, which JSON can hold.

    Args:
        path: the file; default `metrics.jsonl` in the trainer's `default_root_dir`.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A logger, and not the hooks of a callback, sees each metric exactly once: callbacks run before the module's
        # own `on_train_epoch_end`, whose figures they would miss.
        if stage == "fit" and not any(isinstance(logger, _LinesLogger) for logger in trainer.loggers):
            path = self.path or Path(trainer.default_root_dir) / "metrics.jsonl"
            trainer.loggers = [*trainer.loggers, _LinesLogger(path, trainer)]

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        resumed = trainer.ckpt_path is not None
        for logger in trainer.loggers:
            if isinstance(logger, _LinesLogger):
                keep_lines(logger.path, lambda row: resumed and row.get("step", 0) <= trainer.global_step)


class _LinesLogger(Logger):
    """Appends to the file; the trainer calls it wherever it calls the other loggers."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        super().__init__()
        self.path = path
        self._trainer = trainer

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items() if name != "epoch"}
        # Not Lightning's `step`: after a mid-epoch resume it lags one behind, and two lines would share a step.
        row = {"step": self._trainer.global_step, "epoch": self._trainer.current_epoch, **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The composed config is a file of its own in the run folder."""
