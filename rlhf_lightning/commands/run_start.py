"""The moment a run takes over its folder: everything that it needs is loaded, and the first step is next.

Until then a mistake (a broken model, rows that are not there, a reward that cannot be imported) leaves the folder of an
earlier run as it was.
"""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Callback, LightningModule, Trainer


class StartRun(Callback):
    """Calls `begin` once, before the first step; a run that has nothing left to train calls it by hand.

    Args:
        begin: writes the config and opens the run in the tracking store.
    """

    def __init__(self, begin: Callable[[], object]) -> None:
        self.begin, self.begun = begin, False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self()

    def __call__(self) -> None:
        """Begin, unless that was done."""
        if not self.begun:
            self.begun = True
            self.begin()
