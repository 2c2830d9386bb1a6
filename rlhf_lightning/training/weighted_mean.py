"""A mean and a maximum that are exact over batches of any size and over processes, without waiting for a device."""

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

    def __init__(self, device: torch.device | str = "cpu") -> None:
        with torch.device(device):
            super().__init__()
            for name in ("total", "weight"):
                self.add_state(name, torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")

    def update(self, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add a mean `value` over `weight` items; a value of weight 0 is not read."""
        weight, value = (number_on(x, self.total.device) for x in (weight, value))
        self.total += torch.where(weight > 0, value * weight, 0.0)
        self.weight += weight

    def compute(self) -> Tensor:
        """Return the mean so far; 0 if nothing had any weight."""
        return torch.where(self.weight > 0, self.total / self.weight.clamp(min=1e-12), 0.0)

    def sums(self) -> Tensor:
        """Return the two sums of this process, [2], for a checkpoint."""
        return torch.stack([self.total, self.weight])

    def restore(self, sums: Tensor) -> None:
        """Continue bitwise from the sums of a checkpoint."""
        self.reset()
        self.update(0.0)  # tells torchmetrics that there is data
        self.total, self.weight = sums.to(self.total.device).unbind()


class Maximum(Metric):
    """The largest value. NaN stays NaN; torchmetrics' MaxMetric checks for NaN, and drops it, at every update."""

    full_state_update = False
    value: Tensor

    def __init__(self, device: torch.device | str = "cpu") -> None:
        with torch.device(device):
            super().__init__()
            self.add_state("value", torch.full((), -torch.inf, dtype=torch.float32), dist_reduce_fx="max")

    def update(self, value: Tensor) -> None:
        """Take a value into account."""
        self.value = torch.maximum(self.value, number_on(value, self.value.device))

    def compute(self) -> Tensor:
        """Return the largest value so far."""
        return self.value


def number_on(value: Tensor | float, device: torch.device) -> Tensor:
    """Return a float32 number on the device. Python numbers are filled in there: a copy would wait for the device."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float32)
    return torch.full((), value, dtype=torch.float32, device=device)


def on_host(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of one shape, read from their device in one transfer: each separate read would wait for it."""
    if not values:
        return {}
    return dict(zip(values, torch.stack([*values.values()]).cpu(), strict=True))
