"""The gradient of a loss in parts, so that the graph of one part at a time is in memory."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor

from rlhf_lightning.rollout import Rollout

Loss = tuple[Tensor, dict[str, Tensor]]  # to descend, and statistics by name


class PartGradients:
    """Goes backward through every part of a micro-batch but one, which is left to Lightning.

    Lightning calls `zero_grad` between `training_step` and its backward pass; the module asks `keep_gradients` there,
    and the gradients of the other parts survive it. Processes reduce gradients in that last backward pass alone (DDP),
    or in each one (FSDP2). DeepSpeed takes one backward pass per micro-batch: there the graphs of all parts are kept.
    """

    def __init__(self) -> None:
        self._kept = False

    def losses(
        self, trainer: L.Trainer, parts: list[Rollout], batch_idx: int, loss_of: Callable[[Rollout], Loss]
    ) -> list[Loss]:
        """Loss and statistics of every part; only the first one's loss has a graph.

        From the last part to the first, as autograd goes backward through their sum: to the bit the same gradients.
        """
        whole = isinstance(trainer.strategy, DeepSpeedStrategy)
        self._kept = len(parts) > 1 and not whole and batch_idx % trainer.accumulate_grad_batches == 0
        if self._kept:
            trainer.optimizers[0].zero_grad()  # a run that was broken off may have left some
        results = []
        for part in reversed(parts):
            loss, stats = loss_of(part)
            if part is not parts[0] and not whole:
                backward(trainer, loss)
                loss = loss.detach()
            results.append((loss, stats))
        return results[::-1]

    def keep_gradients(self) -> bool:
        """Whether the next `zero_grad` would throw the parts' gradients away."""
        kept, self._kept = self._kept, False
        return kept


def backward(trainer: L.Trainer, loss: Tensor) -> None:
    """Add the gradient of a part, scaled as Lightning scales that of a micro-batch."""
    loss = loss / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    # Outside autocast, like every backward pass: those that are written in Python would compute in half precision.
    with torch.autocast(loss.device.type, enabled=False):
        (loss if scaler is None else scaler.scale(loss)).backward()
