"""The moment a run takes over its folder: everything it needs is loaded, and the first step is next.

Until then a mistake (a broken model, missing rows, a reward that cannot be imported or fails in the first rollout)
leaves an earlier run's folder as it was, and creates no new one.
"""

from __future__ import annotations

from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from rlhf_lightning.callbacks.resumable_checkpoint import check_logged


class Begins(Protocol):
    """A run that is told how far training has come."""

    saved: bool

    def begin(self) -> None:
        """Take over its folder, unless that is done already."""


class StartRun(Callback):
    """Lets a run begin before its first step; a run with nothing left to train begins by hand.

    PPO's first batch comes from its first rollout, which has been scored by then.

    Args:
        run: is told when it begins, and when it has saved a checkpoint.

    Attributes:
        resumed: whether training has started, from a checkpoint if there is one.
    """

    def __init__(self, run: Begins) -> None:
        self.run, self.resumed = run, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.run.saved = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resumed = True
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and callback.strict and trainer.check_val_every_n_epoch == 1:
                check_logged(trainer, pl_module, callback.monitor)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.run.begin()
