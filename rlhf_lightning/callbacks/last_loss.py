"""The loss of the last batch under the weights after the last step, whose effect nothing else has seen.

A loss is computed before its step. If the step blows the weights up, the next loss shows it; after the last step of a
run, or before a checkpoint, there is no next loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.errors import BlownUpError

LARGE = 1e3  # a first loss above it says that something besides the learning rate is unusual


class LastLoss:
    """Keeps a run's first loss and last batch, and recomputes that batch's loss.

    Attributes:
        first: the loss of the first batch, computed before any step; None until then.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self._batch: Any = None

    def keep(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Store a batch that was trained on, and Lightning's outputs for it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._batch = batch
            if self.first is None:
                self.first = float(loss) * trainer.accumulate_grad_batches

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        """Recompute the last batch's loss and compare it with the first one. Call it on every process.

        Dropout is off, and the run's random numbers and metrics are unaffected. A module whose training step is not
        this package's is ignored.

        Raises:
            BlownUpError: the loss is not finite, or above `blown_up` times the first loss (or times 1, if that is
                larger).
        """
        batch, self._batch = self._batch, None
        if batch is None or self.first is None or not _is_ours(module):
            return
        assert isinstance(module, AlignmentModule)
        devices = [module.device] if module.device.type == "cuda" else []
        with (
            _evaluating(module),
            torch.random.fork_rng(devices),
            trainer.precision_plugin.forward_context(),
            torch.no_grad(),
        ):
            loss = float(module.loss_again(batch))
        limit = module.blown_up * max(abs(self.first), 1.0)
        bad = not (math.isfinite(loss) and loss <= limit)
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            early = trainer.global_step <= 1 or abs(self.first) > LARGE
            also = (
                ", or with smaller numbers that the loss is made of: settings of algorithm, and scores" if early else ""
            )
            raise BlownUpError(
                f"train/loss: {loss:.3g} for the last batch with the weights of step {trainer.global_step}, and "
                f"{self.first:.3g} for the first batch of the run: training has blown up, so these weights are not "
                f"saved, and earlier ones stay as they were; train again with a lower optimizer.lr{also}"
            )


def _is_ours(module: LightningModule) -> bool:
    return isinstance(module, AlignmentModule) and type(module).training_step.__module__.startswith("rlhf_lightning.")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put every submodule into evaluation mode, and restore the modes afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
