"""The gap between the sampling engine and the trainer, which compute the same policy in different ways."""

from __future__ import annotations

from rlhf_lightning.functional import truncated_importance_weights
from rlhf_lightning.rollout import Generation, Rollout
from rlhf_lightning.training.recording import Statistics


def weigh_by_engine(rollout: Rollout, generation: Generation, cap: float | None) -> Statistics:
    """Multiply the advantages by importance weights, if they have a cap; return statistics of the gap.

    Weighting the advantages is the same as weighting the policy loss: both terms of the clipped objective are linear in
    the advantage, and a weight above 0 preserves their order.
    """
    found = _logprob_gap(rollout, generation)
    if cap is None:
        return found
    weights = truncated_importance_weights(rollout.logprobs, generation.logprobs, rollout.mask, cap)
    rollout.advantages, tokens = rollout.advantages * weights, rollout.mask.sum()
    return found | {
        "rollout/importance_weight": (weights.sum() / tokens, tokens),
        "rollout/importance_capped": ((weights == cap).sum() / tokens, tokens),
    }


def _logprob_gap(rollout: Rollout, generation: Generation) -> Statistics:
    """Return mean and maximum over tokens of |log p_engine - log p_trainer|, in nats."""
    tokens = rollout.mask.sum()
    gap = (generation.logprobs - rollout.logprobs).abs() * rollout.mask
    return {"rollout/logprob_gap": (gap.sum() / tokens, tokens), "rollout/logprob_gap_max": (gap.max(), 1.0)}
