"""The policy's own answers to the prompts of demonstrations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.data import SequenceBatch, left_pad
from rlhf_lightning.models.forward import right_padded
from rlhf_lightning.models.sharding import whole_weights
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rollout.engine import Generation, RolloutEngine, SamplingSettings


@torch.no_grad()
def own_answers(
    engine: RolloutEngine,
    model: Any,
    batch: SequenceBatch,
    settings: SamplingSettings,
    generator: torch.Generator,
    pad_id: int,
) -> tuple[Tensor, Tensor, Generation]:
    """Return right-padded prompts with new answers: ids [B, L], flags [B, L] on the answers, and the answers.

    A row's prompt is what comes before its first label; a row without labels is answered from its first token.
    """
    starts = (batch.labels != -100).int().argmax(dim=1).clamp(min=1).tolist()
    prompts = [row[:start] for row, start in zip(batch.input_ids.tolist(), starts, strict=True)]
    with whole_weights(model):
        engine.sync(model)
        made = engine.generate(prompts, settings, generator)
    ids, mask = (to_device(x, batch.input_ids.device) for x in left_pad(prompts, pad_id))
    return *right_padded(ids, mask, made.tokens, made.mask), made


def answer_statistics(batch: SequenceBatch, made: Generation) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    """Return the answers' mean length and the share that ended with an EOS, of rows with labels, and their number."""
    counts = (batch.labels != -100).any(dim=1).float()
    numbers = {"response_length": made.mask.sum(dim=1), "eos_rate": made.ended.float()}
    total = counts.sum()
    return {f"rollout/{name}": ((x * counts).sum() / total.clamp(min=1), total) for name, x in numbers.items()}
