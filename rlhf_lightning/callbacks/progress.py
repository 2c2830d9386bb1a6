"""Progress display with the metrics that matter."""

from __future__ import annotations

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Seconds

FIGURES = {
    "train/loss": "loss",
    "val/loss": "val_loss",
    "train/accuracy": "accuracy",
    "rewards/accuracies": "accuracy",
    "val/accuracy": "val_accuracy",
    "val/rewards/accuracies": "val_accuracy",
    "objective/scores": "score",
    "val/scores": "val_score",
    "objective/kl": "kl",
    "kl/coef": "coef",
}
"""Metric -> its short name on the screen, in this order. PPO shows score, KL and coefficient instead of its loss."""


class ProgressBar(TQDMProgressBar):
    """A bar on a terminal; elsewhere (a log file, a pipe) one plain line per epoch:

        epoch 3/20  score 1.23  kl 4.5  coef 0.12  [12 s]

    and one per minute within long epochs.

    Args:
        refresh_rate: batches between refreshes on a terminal.
        seconds: seconds between plain lines within an epoch.
    """

    @checked("callbacks.progress")
    def __init__(self, refresh_rate: Count = 1, seconds: Seconds = 60.0) -> None:
        self._terminal = sys.stdout.isatty()
        self._seconds = seconds
        self._epoch: int | None = None
        self._epoch_started = self._printed = time.monotonic()
        super().__init__(refresh_rate=refresh_rate if self._terminal else 0)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        return figures(trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        self._epoch_line(trainer)
        self._begin_epoch(trainer)
        super().on_train_epoch_start(trainer, *args)

    def on_train_start(self, *args: Any) -> None:
        super().on_train_start(*args)
        self._begin_epoch(args[0])  # a run resumed within an epoch gets no `on_train_epoch_start`

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if time.monotonic() - self._printed > self._seconds:
            self._line(trainer, f"  batch {batch_idx + 1}/{trainer.num_training_batches}")

    def on_train_end(self, *args: Any) -> None:
        self._epoch_line(args[0])
        super().on_train_end(*args)

    def _begin_epoch(self, trainer: Trainer) -> None:
        self._epoch = trainer.current_epoch
        self._epoch_started = self._printed = time.monotonic()

    def _epoch_line(self, trainer: Trainer) -> None:
        """Print at the start of the next epoch, because the module logs after the callbacks' epoch end."""
        if self._epoch is not None and trainer.current_epoch > self._epoch:
            self._line(trainer, "")

    def _line(self, trainer: Trainer, place: str) -> None:
        self._printed = time.monotonic()
        if self._terminal or not trainer.is_global_zero:
            return
        epochs = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        values = "".join(f"  {name} {value}" for name, value in figures(trainer).items())
        seconds = self._printed - self._epoch_started
        print(f"epoch {(self._epoch or 0) + 1}{epochs}{place}{values}  [{seconds:.0f} s]", flush=True)


def figures(trainer: Trainer) -> dict[str, str]:
    """Return the logged metrics of `FIGURES`, rounded to three digits."""
    metrics = trainer.callback_metrics
    shown = {name: f"{float(metrics[key]):.3g}" for key, name in FIGURES.items() if key in metrics}
    if "score" in shown:
        shown.pop("loss", None)
    return shown
