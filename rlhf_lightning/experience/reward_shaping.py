"""What happens to scores between the reward and the token rewards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.functional import overlong_penalty
from rlhf_lightning.setting_rules import check_lengths
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, NonNegative, Positive, Whole


@checked("algorithm.shaping")
@dataclass(frozen=True)
class RewardShaping:
    """What a response's score becomes: per token, normalised, clipped, and reduced by penalties, in this order.

    Lengths are in tokens and include the EOS. Penalties are in the unit of the shaped score and add up.

    Args:
        length_normalize: divide the score by the response's length.
        normalize: (score - running mean) / running std, over all responses so far on all processes.
        clip: clip scores to [-clip, clip] afterwards; null: no clipping.
        missing_eos_penalty: subtracted from the score of a response that did not produce an EOS.
        length_penalty: subtracted for each token beyond `length_allowed`.
        length_allowed: tokens without a penalty.
        overlong_penalty: weight of DAPO's penalty, which rises from 0 to 1 over the last tokens before a length (see
            `functional.overlong_penalty`).
        overlong_length: the length from which on it is 1; null: `rollout.max_new_tokens`.
        overlong_buffer: number of the tokens before it over which the penalty rises.

    Raises:
        UserError: `overlong_penalty` without its buffer, or a buffer longer than the length.
    """

    length_normalize: bool = False
    normalize: bool = False
    clip: Positive | None = None
    missing_eos_penalty: NonNegative = 0.0
    length_penalty: NonNegative = 0.0
    length_allowed: Whole = 0
    overlong_penalty: NonNegative = 0.0
    overlong_length: Count | None = None
    overlong_buffer: Count | None = None

    def __post_init__(self) -> None:
        check_lengths(vars(self))


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


def per_token(scores: Tensor, lengths: Tensor, shaping: RewardShaping) -> Tensor:
    """Return the scores [B], divided by the lengths [B] if the shaping says so."""
    return scores / lengths.clamp(min=1) if shaping.length_normalize else scores


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    lengths: Tensor,
    shaping: RewardShaping,
    moments: RunningMoments,
    max_new_tokens: int | None = None,
) -> Tensor:
    """Return the scores [B] that enter the token rewards.

    Args:
        scores: [B], from `per_token`.
        ended: [B], whether each response has an EOS.
        lengths: [B], tokens.
        shaping: what is done.
        moments: of the scores so far.
        max_new_tokens: the length of the overlong penalty, unless the shaping gives one.
    """
    if shaping.normalize:
        scores = (scores - moments.mean) / moments.std
    if shaping.clip is not None:
        scores = scores.clamp(-shaping.clip, shaping.clip)
    scores = torch.where(ended, scores, scores - shaping.missing_eos_penalty)
    for penalty in length_penalties(lengths, shaping, max_new_tokens).values():
        scores = scores - penalty
    return scores


def length_penalties(lengths: Tensor, shaping: RewardShaping, max_new_tokens: int | None = None) -> dict[str, Tensor]:
    """Return what each response's score loses by its length, [B], by the name of the setting that is in use.

    Arguments as for `shape_scores`.
    """
    found: dict[str, Tensor] = {}
    if shaping.length_penalty:
        found["length_penalty"] = shaping.length_penalty * (lengths - shaping.length_allowed).clamp(min=0)
    longest = shaping.overlong_length or max_new_tokens
    if shaping.overlong_penalty and shaping.overlong_buffer and longest:
        share = overlong_penalty(lengths, longest, shaping.overlong_buffer)
        found["overlong_penalty"] = shaping.overlong_penalty * share
    return found
