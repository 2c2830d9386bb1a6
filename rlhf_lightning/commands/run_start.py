"""The moment a run takes over its folder: everything that it needs is loaded, and the first step is next.

Until then a mistake (a broken model, rows that are not there, a reward that cannot be imported, or that fails in the
first rollout) leaves the folder of an earlier run as it was, and makes no new one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StartRun(Callback):
    """Calls `begin` once, before the first step; a run that has nothing left to train calls it by hand.

    PPO's first batch comes of its first rollout, which is scored by then.

    Args:
        begin: writes the config and opens the run in the tracking store.

    Attributes:
        resumed: whether training has started, from a checkpoint if there is one.
        begun: whether `begin` was called, and has not failed.
    """

    def __init__(self, begin: Callable[[], object]) -> None:
        self.begin, self.begun, self.saved, self.resumed = begin, False, False, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.saved = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resumed = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self()

    def __call__(self) -> None:
        """Begin, unless that was done."""
        if not self.begun:
            self.begun = True
            try:
                self.begin()
            except BaseException:
                self.begun = False  # the folder is still as it was
                raise
