"""The engine that samples and the trainer compute the same policy in different ways: how far apart they are."""

from __future__ import annotations

from torch import Tensor

from rlhf_lightning.functional import truncated_importance_weights
from rlhf_lightning.rollout import Generation, Rollout
from rlhf_lightning.training.recording import Statistics


def logprob_gap(rollout: Rollout, generation: Generation) -> Statistics:
    """Return mean and maximum over tokens of |log p_engine - log p_trainer|, in nats."""
    tokens = rollout.mask.sum()
    gap = (generation.logprobs - rollout.logprobs).abs() * rollout.mask
    return {"rollout/logprob_gap": (gap.sum() / tokens, tokens), "rollout/logprob_gap_max": (gap.max(), 1.0)}


def importance_weights(rollout: Rollout, generation: Generation, cap: float) -> tuple[Tensor, Statistics]:
    """Return the weight of every token [B, T], and the weights' statistics.

    Advantages times weights are the policy loss times weights: both terms of the clipped objective are linear in the
    advantage, and a weight above 0 leaves their order.
    """
    weights = truncated_importance_weights(rollout.logprobs, generation.logprobs, rollout.mask, cap)
    tokens = rollout.mask.sum()
    return weights, {
        "rollout/importance_weight": (weights.sum() / tokens, tokens),
        "rollout/importance_capped": ((weights == cap).sum() / tokens, tokens),
    }
