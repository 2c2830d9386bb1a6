"""Sampled responses of one policy to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.data import PromptRow, left_pad
from rlhf_lightning.evaluation.divergence import response_kl
from rlhf_lightning.models import end_of_sequence_ids, response_logprobs
from rlhf_lightning.rollout import NativeEngine, SamplingSettings, seeded_generator


@dataclass(frozen=True)
class SampledResponse:
    """One response: its text without special tokens, its length in tokens (EOS included), whether EOS ended it, and
    its KL estimate against the reference in nats (None without a reference)."""

    text: str
    length: int
    ended: bool
    kl: float | None


@torch.no_grad()
def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[PromptRow],
    settings: SamplingSettings,
    *,
    batch_size: int,
    seed: int,
    reference: PreTrainedModel | None = None,
) -> list[SampledResponse]:
    """One response a prompt, in order. The draws depend on `seed`, the prompts and `batch_size` only, so two equal
    policies answer equally.

    The KL scores policy and reference with the same forward pass, not with the log-probabilities kept while decoding:
    a policy against itself is then exactly 0.
    """
    device = next(model.parameters()).device
    eos_ids = end_of_sequence_ids(model, tokenizer)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos_ids[0]
    engine = NativeEngine(pad_id=pad_id, eos_ids=eos_ids)
    engine.sync(model)
    generator = seeded_generator(device, "evaluation", seed)
    responses: list[SampledResponse] = []
    for start in range(0, len(prompts), batch_size):
        batch = [list(row.input_ids) for row in prompts[start : start + batch_size]]
        generation = engine.generate(batch, settings, generator)
        kl: Tensor | None = None
        if reference is not None:
            prompt_ids, prompt_mask = (x.to(device) for x in left_pad(batch, pad_id))
            inputs = (prompt_ids, prompt_mask, generation.tokens, generation.mask)
            logprobs, ref_logprobs = (
                response_logprobs(role, *inputs, temperature=settings.temperature) for role in (model, reference)
            )
            kl = response_kl(logprobs, ref_logprobs, generation.mask)
        for i in range(len(batch)):
            length = int(generation.mask[i].sum())
            text = tokenizer.decode(generation.tokens[i, :length].tolist(), skip_special_tokens=True)
            ended = bool(generation.ended[i])
            responses.append(SampledResponse(str(text).strip(), length, ended, None if kl is None else float(kl[i])))
    return responses
