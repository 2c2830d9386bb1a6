"""Responses of an external engine: what it is asked for, and the checks of what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout.engine import Generation, SamplingSettings

LEAST_TEMPERATURE = 0.01  # vLLM raises any temperature below this, except 0, to this


class Response(NamedTuple):
    """One row from the engine: token ids, and their log-probabilities in nats."""

    tokens: Sequence[int]
    logprobs: Sequence[float]


def row_seeds(rows: int, generator: torch.Generator | None) -> list[int]:
    """Return a seed per row, drawn from `generator`: a function of the row and what seeded it (seed, epoch, rank)."""
    device = generator.device if generator is not None else "cpu"
    seeds: list[int] = torch.randint(2**62, (rows,), generator=generator, device=device).tolist()
    return seeds


def sampling_arguments(settings: SamplingSettings, seed: int, eos_ids: Sequence[int]) -> dict[str, Any]:
    """Return vLLM's sampling parameters: the full tempered distribution, ended by our EOS ids and nothing else.

    Every default that a model's own generation config could change is set explicitly, since servers apply that config.
    `logprobs=0` returns only the sampled token's. `ignore_eos` leaves the EOS to `stop_token_ids`.

    Raises:
        UserError: top-k or top-p, which would change the reported log-probabilities; a temperature that vLLM would
            change.
    """
    if settings.filters:
        raise UserError(
            "rollout.engine: vLLM's log-probabilities are those after top-k and top-p; choose rollout=native"
        )
    if 0 < settings.temperature < LEAST_TEMPERATURE:
        raise UserError(
            f"rollout.temperature: found {settings.temperature}; vLLM samples at {LEAST_TEMPERATURE} or more"
        )
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "seed": seed,
        "logprobs": 0,
        "stop_token_ids": list(eos_ids),
        "ignore_eos": True,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "min_tokens": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def to_generation(
    responses: Sequence[Response],
    settings: SamplingSettings,
    pad_id: int,
    eos_ids: Sequence[int],
    device: torch.device | str,
    source: str,
) -> Generation:
    """Return the rows padded on the right, with T the longest row.

    Args:
        source: who answered, for error messages.

    Raises:
        UserError: a row that sampling with these settings cannot produce.
    """
    ends = set(eos_ids)
    for row, response in enumerate(responses):
        fault = _fault(response, settings.max_new_tokens, ends)
        if fault:
            raise UserError(f"{source}: the response of row {row} cannot be used: {fault}")
    lengths = torch.tensor([len(response.tokens) for response in responses])
    mask = (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).float()
    tokens = _filled([response.tokens for response in responses], mask, pad_id, torch.long)
    logprobs = _filled([response.logprobs for response in responses], mask, 0.0, torch.float32)
    ended = torch.tensor([response.tokens[-1] in ends for response in responses])
    return Generation(tokens.to(device), mask.to(device), logprobs.to(device), ended.to(device))


def _filled(rows: Sequence[Sequence[Any]], mask: Tensor, value: float, dtype: torch.dtype) -> Tensor:
    flat = torch.tensor([x for row in rows for x in row], dtype=dtype)
    return torch.full(mask.shape, value, dtype=dtype).masked_scatter(mask.bool(), flat)


def _fault(response: Response, longest: int, ends: set[int]) -> str:
    """Return what is wrong with a row; empty if nothing."""
    tokens, logprobs = response
    if not all(isinstance(token, int) and token >= 0 for token in tokens):
        return "its tokens are not token ids"
    if not tokens:
        return "it is empty"
    if len(tokens) > longest:
        return f"{len(tokens)} tokens where {longest} were asked for"
    if any(token in ends for token in tokens[:-1]):
        return "it goes on after an EOS"
    if tokens[-1] not in ends and len(tokens) < longest:
        return (
            f"it stops after {len(tokens)} tokens without an EOS where {longest} were asked for; prompt and response "
            "must fit into the engine's max_model_len"
        )
    if len(logprobs) != len(tokens):
        return f"{len(logprobs)} log-probabilities for {len(tokens)} tokens"
    if not all(isinstance(x, float | int) and math.isfinite(x) and x <= 0 for x in logprobs):
        return "its log-probabilities are not numbers of at most 0"
    return ""
