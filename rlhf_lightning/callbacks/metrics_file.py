"""metrics.jsonl: the logged metrics, one JSON object per line, in the run folder."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.lines import Lines
from rlhf_lightning.value_types import Text


class MetricsFile(Callback):
    """Writes every set of logged metrics as one line `{"step": 12, "epoch": 3, "train/loss": 0.7, ...}`.

    `step` is the number of optimiser steps done when the line was written. A resumed run continues after the lines that
    existed when its checkpoint was saved: later ones, and half a line left by a kill, are dropped and written again. A
    file that does not begin with those lines is refused. Lightning logs a step only after it has saved the checkpoint,
    so the checkpoint includes that step's line (the module's `pending_metrics`), and it is added if a kill fell between
    the two. A module without that method keeps the lines up to its checkpoint's step. A new run starts a new file. NaN
    and infinities become null, because JSON has neither.

    Args:
        path: the file; default `metrics.jsonl` in the trainer's `default_root_dir`.
    """

    def __init__(self, path: Text | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        self._logger: _LinesLogger | None = None
        self._saved: dict[str, Any] | None = None
        self._begun = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # A logger rather than callback hooks, because it sees each metric exactly once: callbacks run before the
        # module's own `on_train_epoch_end`, whose metrics they would miss.
        if stage == "fit" and not any(isinstance(logger, _LinesLogger) for logger in trainer.loggers):
            path = self.path or Path(trainer.default_root_dir) / "metrics.jsonl"
            self._logger, self._begun = _LinesLogger(path, trainer), False
            trainer.loggers = [*trainer.loggers, self._logger]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        ask: Any = getattr(pl_module, "pending_metrics", None)
        if self._logger is not None and ask is not None:
            pending = ask()
            row = self._logger.row(pending) if pending else None
            checkpoint["metrics_file"] = {**self._logger.lines.state(), "pending": row}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._saved = checkpoint.get("metrics_file")
        if self._saved is not None and self._logger is not None:
            self._logger.lines.check(self._saved)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begin(trainer)  # not before PPO's first rollout is scored: until then the lines belong to an earlier run

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)  # resumed from its last checkpoint with nothing left to train

    @rank_zero_only
    def _begin(self, trainer: Trainer) -> None:
        if self._logger is None or self._begun:
            return
        self._begun = True
        if trainer.ckpt_path is None:
            self._logger.keep(lambda i, row: False)
        elif self._saved is None:
            self._logger.keep(lambda i, row: row.get("step", 0) <= trainer.global_step)
        else:
            lines, pending = self._saved["lines"], self._saved["pending"]
            # The line of the checkpoint's step may hold more than the module knows, so an existing one is kept.
            kept = self._logger.keep(
                lambda i, row: i < lines or (pending is not None and row.items() >= pending.items())
            )
            if pending is not None and kept == lines:
                self._logger.append(pending)


class _LinesLogger(Logger):
    """Appends to the file; the trainer calls it like its other loggers."""

    def __init__(self, path: Path, trainer: Trainer) -> None:
        super().__init__()
        self.lines = Lines(path)
        self._trainer = trainer

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.lines.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.append(self.row(metrics))

    def row(self, metrics: dict[str, float]) -> dict[str, Any]:
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items() if name != "epoch"}
        # Not Lightning's `step`: after a mid-epoch resume it lags by one, and two lines would share a step.
        return {"step": self._trainer.global_step, "epoch": self._trainer.current_epoch, **values}

    def append(self, row: dict[str, Any]) -> None:
        self.lines.append(json.dumps(row))

    def keep(self, wanted: Callable[[int, dict[str, Any]], bool]) -> int:
        """Keep the rows for which `wanted(index, row)` is true; return how many are left."""
        index = itertools.count()
        return self.lines.keep(lambda row: wanted(next(index), row))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the composed config has its own file in the run folder."""
