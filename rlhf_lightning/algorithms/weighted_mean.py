"""A mean that is exact over batches of any size and over processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class WeightedMean(Metric):
    """sum w x / sum w. NaN stays NaN.

    torchmetrics' MeanMetric drops NaN, and with `nan_strategy="disable"` it drops the weights instead (1.9).
    """

    full_state_update = False
    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add a mean `value` over `weight` items; a value of weight 0 is not read."""
        weight = torch.as_tensor(weight, dtype=torch.float32, device=self.total.device)
        value = torch.as_tensor(value, dtype=torch.float32, device=self.total.device)
        self.total += torch.where(weight > 0, value * weight, 0.0)
        self.weight += weight

    def compute(self) -> Tensor:
        """The mean so far; 0 where nothing had any weight."""
        return torch.where(self.weight > 0, self.total / self.weight.clamp(min=1e-12), 0.0)

    def sums(self) -> Tensor:
        """The two sums of this process, for a checkpoint."""
        return torch.stack([self.total, self.weight]).cpu()

    def restore(self, sums: Tensor) -> None:
        """Go on from the sums of a checkpoint, to the bit."""
        self.reset()
        self.update(0.0)  # so that torchmetrics knows of data
        self.total, self.weight = sums.to(self.total.device).unbind()
