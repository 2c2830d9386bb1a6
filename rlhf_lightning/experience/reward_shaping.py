"""What happens to scores between the reward and the token rewards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive


@checked("algorithm.shaping")
@dataclass(frozen=True)
class RewardShaping:
    """Normalisation, clipping and the penalty for not ending, in this order.

    Args:
        normalize: (score - running mean) / running std, over all responses so far on all processes.
        clip: clip scores to [-clip, clip] afterwards; null: no clipping.
        missing_eos_penalty: subtracted from the score of a response that did not produce an EOS.
    """

    normalize: bool = False
    clip: Positive | None = None
    missing_eos_penalty: NonNegative = 0.0


class RunningMoments:
    """Mean and variance of a stream, merged batch by batch (Chan, Golub and LeVeque 1979, equation 2.1)."""

    def __init__(self) -> None:
        self.count, self.mean, self.m2 = 0.0, 0.0, 0.0

    def update(self, x: Tensor) -> None:
        """Merge a batch of values."""
        values = x.double()
        n, mean = float(values.numel()), float(values.mean())
        m2 = float(((values - mean) ** 2).sum())
        delta, total = mean - self.mean, self.count + n
        self.mean += delta * n / total
        self.m2 += m2 + delta**2 * self.count * n / total
        self.count = total

    @property
    def std(self) -> float:
        """Return the population standard deviation; 1 until the spread exceeds float32 rounding."""
        std = (self.m2 / self.count) ** 0.5 if self.m2 > 0 else 0.0
        return std if std > 1e-6 * abs(self.mean) else 1.0

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self.m2 = state["count"], state["mean"], state["m2"]


def shape_scores(scores: Tensor, ended: Tensor, shaping: RewardShaping, moments: RunningMoments) -> Tensor:
    """Return the scores [B] that enter the token rewards."""
    if shaping.normalize:
        scores = (scores - moments.mean) / moments.std
    if shaping.clip is not None:
        scores = scores.clamp(-shaping.clip, shaping.clip)
    return torch.where(ended, scores, scores - shaping.missing_eos_penalty)
