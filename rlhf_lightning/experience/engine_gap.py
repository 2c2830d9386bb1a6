"""The engine that samples and the trainer compute the same policy in different ways: how far apart they are."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rlhf_lightning.functional import truncated_importance_weights
from rlhf_lightning.rollout import Generation, Rollout


def record_gap(module: Any, rollout: Rollout, generation: Generation) -> None:
    """Record mean and maximum over tokens of |log p_engine - log p_trainer|, in nats."""
    tokens = rollout.mask.sum()
    gap = (generation.logprobs - rollout.logprobs).abs() * rollout.mask
    module.record("rollout/logprob_gap", gap.sum() / tokens, tokens)
    module.record_max("rollout/logprob_gap_max", gap.max())


def importance_weights(module: Any, rollout: Rollout, generation: Generation, cap: float) -> Tensor:
    """The weight of every token [B, T], and its statistics recorded on the module.

    Advantages times weights are the policy loss times weights: both terms of the clipped objective are linear in the
    advantage, and a weight above 0 leaves their order.
    """
    weights = truncated_importance_weights(rollout.logprobs, generation.logprobs, rollout.mask, cap)
    tokens = rollout.mask.sum()
    module.record("rollout/importance_weight", weights.sum() / tokens, tokens)
    module.record("rollout/importance_capped", (weights == cap).sum() / tokens, tokens)
    return weights
