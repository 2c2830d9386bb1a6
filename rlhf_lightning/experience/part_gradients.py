"""The gradient of a loss in parts, so that only one part's graph is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from rlhf_lightning.rollout import Rollout

Loss = tuple[Tensor, dict[str, Tensor]]  # the loss to minimise, and statistics by name


class PartGradients:
    """Runs backward on every part of a micro-batch except one, which is left to Lightning.

    Lightning calls `zero_grad` between `training_step` and its backward pass; the module asks `keep_gradients` there,
    so the gradients of the other parts survive it. Processes reduce gradients only in that last backward pass (DDP), or
    in every one (FSDP2). DeepSpeed accepts one backward pass per micro-batch, so there the graphs of all parts are
    kept.
    """

    def __init__(self) -> None:
        self._kept = False

    def losses(
        self, trainer: L.Trainer, parts: list[Rollout], batch_idx: int, loss_of: Callable[[Rollout], Loss]
    ) -> list[Loss]:
        """Return loss and statistics of every part; only the first part's loss has a graph.

        Parts run from last to first, as autograd would go backward through their sum: the gradients are bitwise the
        same.
        """
        whole = isinstance(trainer.strategy, DeepSpeedStrategy)
        self._kept = len(parts) > 1 and not whole and batch_idx % trainer.accumulate_grad_batches == 0
        if self._kept:
            trainer.optimizers[0].zero_grad()  # an interrupted run may have left some
        results = []
        for part in reversed(parts):
            loss, stats = loss_of(part)
            if part is not parts[0] and not whole:
                backward(trainer, loss)
                loss = loss.detach()
            results.append((loss, stats))
        return results[::-1]

    def keep_gradients(self) -> bool:
        """Return whether the next `zero_grad` would discard the parts' gradients."""
        kept, self._kept = self._kept, False
        return kept


def backward(trainer: L.Trainer, loss: Tensor) -> None:
    """Add the gradient of a part, scaled as Lightning scales a micro-batch's."""
    loss = loss / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # Outside autocast, like every backward pass: those written in Python would compute in half precision.
    with torch.autocast(loss.device.type, enabled=False):
        (loss if scaler is None else scaler.scale(loss)).backward()
