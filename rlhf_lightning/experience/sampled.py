"""Sampled responses with their scores, before anything else is computed about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.data import PromptRow
from rlhf_lightning.rewards.protocol import Score
from rlhf_lightning.rollout import Generation


class Sampled(NamedTuple):
    """B responses.

    Attributes:
        prompts: B prompts, those of a group adjacent.
        generation: the responses.
        scores: [B], before normalisation and penalties.
        parts: the scores of each part of a reward that is a sum; None where a part does not apply.
        extras: further columns of the reward about the responses.
        learned: [B], 1.0 on responses that count in the loss.
    """

    prompts: list[PromptRow]
    generation: Generation
    scores: Tensor
    parts: Mapping[str, Sequence[Score]]
    extras: Mapping[str, Sequence[Any]]
    learned: Tensor


def learning_from(sampled: Sampled, which: Tensor) -> Sampled:
    """Return the same samples, of which only those learn that did so far and have 1.0 in `which` [B]."""
    return Sampled(*sampled[:-1], learned=sampled.learned * which)


def joined(pieces: list[Sampled], rows: Tensor, learned: Tensor) -> Sampled:
    """Return some rows of several samples, numbered through all of them, as one.

    Args:
        pieces: what was sampled, one after the other.
        rows: [B], row numbers.
        learned: [B], see Sampled.
    """
    generations = [piece.generation for piece in pieces]
    longest = max(generation.mask.shape[1] for generation in generations)

    def column(tensors: list[Tensor]) -> Tensor:
        return torch.cat([F.pad(x, (0, longest - x.shape[1])) for x in tensors])[rows]

    mask = column([generation.mask for generation in generations])
    width = int(mask.sum(dim=1).max())
    values = [generation.values for generation in generations if generation.values is not None]
    generation = Generation(
        column([generation.tokens for generation in generations])[:, :width],
        mask[:, :width],
        column([generation.logprobs for generation in generations])[:, :width],
        torch.cat([generation.ended for generation in generations])[rows],
        column(values)[:, :width] if values else None,
    )
    chosen = rows.tolist()
    prompts = [row for piece in pieces for row in piece.prompts]

    def columns(found: list[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
        names = [name for name in found[0] if all(name in each for each in found)]
        whole = {name: [x for each in found for x in each[name]] for name in names}
        return {name: [column[i] for i in chosen] for name, column in whole.items()}

    return Sampled(
        [prompts[i] for i in chosen],
        generation,
        torch.cat([piece.scores for piece in pieces])[rows],
        columns([piece.parts for piece in pieces]),
        columns([piece.extras for piece in pieces]),
        learned,
    )
