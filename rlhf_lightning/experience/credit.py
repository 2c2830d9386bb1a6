"""Advantage estimators: from the rewards of a rollout's tokens to what each token is praised or blamed for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rlhf_lightning.functional import generalized_advantage_estimate
from rlhf_lightning.rollout import Rollout


class Credit(NamedTuple):
    """Advantages [B, T], and what a critic should have said of each token [B, T]; None without a critic."""

    advantages: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True)
class GAE:
    """Generalised advantages from a critic's values (Schulman et al. 2015, eq. 16)."""

    gamma: float = 1.0
    lam: float = 0.95

    def __call__(self, rollout: Rollout) -> Credit:
        assert rollout.values is not None
        return Credit(
            *generalized_advantage_estimate(rollout.rewards, rollout.values, rollout.mask, self.gamma, self.lam)
        )
