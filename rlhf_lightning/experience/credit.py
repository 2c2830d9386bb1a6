"""Advantage estimators: from the token rewards of a rollout to the credit of each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import GROUP_OF_ONE, UserError
from rlhf_lightning.functional import generalized_advantage_estimate, group_advantages
from rlhf_lightning.rollout import Rollout


class Credit(NamedTuple):
    """Advantages [B, T], and the critic's targets [B, T]; None without a critic."""

    advantages: Tensor
    returns: Tensor | None = None


@dataclass(frozen=True)
class GAE:
    """Generalised advantage estimation from a critic's values (Schulman et al. 2015, eq. 16)."""

    gamma: float = 1.0
    lam: float = 0.95

    def __call__(self, rollout: Rollout) -> Credit:
        assert rollout.values is not None
        return Credit(
            *generalized_advantage_estimate(rollout.rewards, rollout.values, rollout.mask, self.gamma, self.lam)
        )


@dataclass(frozen=True)
class GroupBaseline:
    """A response's reward relative to others to its prompt, on each of its tokens; see `group_advantages`."""

    group_size: int
    baseline: str = "mean"
    scale: str = "std"

    def __call__(self, rollout: Rollout) -> Credit:
        advantages = group_advantages(rollout.rewards.sum(dim=1), self.group_size, self.baseline, self.scale)
        return Credit(advantages.unsqueeze(1) * rollout.mask)


@dataclass(frozen=True)
class ReturnsToGo:
    """The discounted sum of token rewards from each token on: GAE without values and with lambda 1."""

    gamma: float = 1.0

    def __call__(self, rollout: Rollout) -> Credit:
        zeros = torch.zeros_like(rollout.rewards)
        return Credit(generalized_advantage_estimate(rollout.rewards, zeros, rollout.mask, self.gamma, lam=1.0)[0])


def critic_free(estimator: str, scale: str, gamma: float, group_size: int) -> GroupBaseline | ReturnsToGo:
    """Return an estimator of `PolicyGradientModule` by its name.

    Raises:
        UserError: a setting that the estimator does not read, or a group of one.
    """
    if estimator == "returns":
        refuse(scale != "none", f"scale: found {scale}, but algorithm.estimator=returns has no groups; use none")
        return ReturnsToGo(gamma)
    if group_size < 2:
        raise UserError(GROUP_OF_ONE.format(estimator=estimator))
    refuse(gamma != 1, f"gamma: found {gamma}, but only algorithm.estimator=returns discounts; use 1")
    return GroupBaseline(group_size, "mean" if estimator == "group_mean" else estimator, scale)


def refuse(wrong: bool, why: str) -> None:
    """Raise UserError for a setting of the algorithm that another one contradicts."""
    if wrong:
        raise UserError(f"algorithm.{why}")
