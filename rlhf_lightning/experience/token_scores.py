"""Scores that belong to certain tokens: from a reward's numbers per token to what enters the token rewards.

Shaping is defined on a response's total. Here its scale is that of every token; what it adds or subtracts (the mean of
the normalisation, penalties for a response's length or end) is at the last token. So token rewards add up to the shaped
score minus the KL penalty, whichever form the reward has.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import token_rewards
from rlhf_lightning.rewards import Scores, per_token
from rlhf_lightning.rollout import Rollout


def placed(scores: Scores, mask: Tensor) -> Tensor | None:
    """Return a reward's numbers per token at their tokens, [B, T]; None if it has one number per response.

    Args:
        scores: a checked result for B responses.
        mask: [B, T], nonzero on valid response tokens, which come first.
    """
    if not per_token(scores):
        return None
    rows = [[*row, *[0.0] * (mask.shape[1] - len(row))] for row in scores]
    return torch.tensor(rows, dtype=torch.float32, device=mask.device)


def refuse_clip(clip: float | None, key: str) -> None:
    """Raise UserError for a clipped total of numbers per token: no token says what was clipped away."""
    if clip is not None:
        raise UserError(
            f"algorithm.shaping.clip: found {clip}, but {key} gives numbers per token, of which a clipped sum would "
            "not be the sum; set it to null"
        )


def rewards_at_tokens(rollout: Rollout, kl: Tensor, kl_coef: float) -> Tensor:
    """Return the token rewards [B, T] of a rollout whose scores are shaped: their sum is its score minus the penalty.

    Args:
        rollout: `scores` [B], of which `token_scores` [B, T] are at their tokens, and the rest is at the last one.
        kl: [B, T], nats per token.
        kl_coef: score per nat.
    """
    own = rollout.token_scores
    if own is None:
        return token_rewards(rollout.scores, kl, rollout.mask, kl_coef)
    return token_rewards(rollout.scores - own.sum(dim=1), kl, rollout.mask, kl_coef) + own
