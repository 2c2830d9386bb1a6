"""Checks of a rollout's scores before they are learned from."""

from __future__ import annotations

import logging

from torch import Tensor

from rlhf_lightning.errors import UserError

log = logging.getLogger(__name__)

LARGEST = 1e18  # the value loss takes squares of returns, and float32 ends at 3.4e38


def check_scale(scores: Tensor, key: str) -> None:
    """Raise UserError for shaped scores whose squares float32 cannot represent.

    Args:
        scores: [B], as they enter the token rewards.
        key: the reward's key, for the message.
    """
    largest = float(scores.abs().max())
    if not largest <= LARGEST:
        raise UserError(
            f"{key}: a score of {largest:.3g}, too large to learn from; must be at most {LARGEST:g}; scale the scores, "
            "or set algorithm.shaping.clip"
        )


class ConstantScores:
    """Warns once about an iteration whose responses all have the same score: such a reward teaches nothing."""

    def __init__(self) -> None:
        self._said = False

    def look(self, scores: list[float], key: str) -> None:
        """Check the unshaped scores of an iteration."""
        if len(scores) > 1 and len(set(scores)) == 1 and not self._said:
            self._said = True
            log.warning(
                f"{key}: all {len(scores)} responses of an iteration have the score {scores[0]:g}, so nothing tells a "
                "good one from a bad one; check that the reward reads the responses. This is reported once"
            )
