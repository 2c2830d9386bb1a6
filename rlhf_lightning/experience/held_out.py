"""Responses to held-out prompts, as a validation step passes them to callbacks."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rlhf_lightning.data import PromptRow
from rlhf_lightning.rollout import Generation, Rollout


class HeldOut(NamedTuple):
    """What a validation step has sampled and scored.

    Attributes:
        prompts: B prompts.
        generation: one response to each.
        rollout: the responses with log-probabilities under policy and reference.
        scores: [B], by the reward that is trained on, before shaping.
    """

    prompts: list[PromptRow]
    generation: Generation
    rollout: Rollout
    scores: Tensor
