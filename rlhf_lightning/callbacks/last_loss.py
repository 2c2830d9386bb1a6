"""The loss of the last batch with the weights that the last step has made: nothing else has seen what that step did.

A loss is computed before its step. Where the step blows the weights up, the next loss shows it; after the last step of
a run, or before a checkpoint, there is no next one.
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


class LastLoss:
    """Keeps the first loss of a run and its last batch, and looks at that batch's loss again.

    Attributes:
        first: the loss of the first batch, computed before any step; None before.
    """

    def __init__(self) -> None:
        self.first: float | None = None
        self._batch: Any = None

    def keep(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        """Note a batch that was trained on, and Lightning's outputs of it."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor) and loss.numel() == 1:
            self._batch = batch
            if self.first is None:
                self.first = float(loss) * trainer.accumulate_grad_batches

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        """Compute the last batch's loss once more, and compare it with the first one. Every process calls it.

        Dropout is off, and neither the run's random numbers nor its metrics notice. A module whose training step is
        not this package's is left alone.

        Raises:
            BlownUpError: it is not finite, or above `blown_up` times the first one (or times 1, if that is more).
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
            raise BlownUpError(
                f"train/loss: {loss:.3g} for the last batch with the weights of step {trainer.global_step}, and "
                f"{self.first:.3g} for the first batch of the run: training has blown up, so these weights are not "
                "saved, and earlier ones stay as they were; train again with a lower optimizer.lr"
            )


def _is_ours(module: LightningModule) -> bool:
    return isinstance(module, AlignmentModule) and type(module).training_step.__module__.startswith("rlhf_lightning.")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Every part in evaluation, and as it was afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
