"""The enumerable world under masks of the vocabulary: which responses can be sampled, and their optimum.

Masks M(s) are sets of tokens per state. Policy and reference are renormalised over them, token by token, so that a
response with a masked token has probability 0. Among the others,

    J(pi~) = E[r] - beta KL(pi~ || ref~),        pi* = ref~ exp(r / beta) / Z,        J* = beta log Z
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.exact.enumerable import World


def all_logits(world: World, model: Any) -> Tensor:
    """Return the logits that every token of every response is predicted from, [P, N, T, V], by a plain forward pass."""
    ids, flags = world.rows()
    logits = model(input_ids=ids).logits
    before = torch.cat([flags[:, 1:], torch.zeros_like(flags[:, :1])], dim=1).bool()
    return logits[before].view(len(world.prompts), len(world.responses), world.length, -1)


def nuclei(world: World, model: Any, top_p: float) -> Tensor:
    """Return the top-p tokens of every state, [P, N, T, V] bool, token by token."""
    with torch.no_grad():
        probabilities = all_logits(world, model).double().softmax(dim=-1)
    flat = probabilities.flatten(0, 2)
    masks = torch.zeros(flat.shape, dtype=torch.bool)
    for row, mask in zip(flat.tolist(), masks, strict=True):
        mass = 0.0
        for token in sorted(range(len(row)), key=lambda i: -row[i]):
            if mass >= top_p:
                break
            mask[token] = True
            mass += row[token]
    return masks.view(probabilities.shape)


def masked_logprobs(world: World, model: Any, masks: Tensor) -> Tensor:
    """Return log pi~(token | state), [P, N, T], -inf where a token is masked; with gradients if they are on."""
    logprobs = all_logits(world, model).double().masked_fill(~masks, -torch.inf).log_softmax(dim=-1)
    return logprobs.gather(-1, world.responses.expand(len(world.prompts), -1, -1).unsqueeze(-1)).squeeze(-1)


def possible(world: World, masks: Tensor) -> Tensor:
    """Return which responses have no masked token, [P, N]."""
    tokens = world.responses.expand(len(world.prompts), -1, -1).unsqueeze(-1)
    return masks.gather(-1, tokens).squeeze(-1).all(dim=-1)


def masked_regret(world: World, model: Any, masks: Tensor, beta: float) -> float:
    """Return the regret among policies under these masks: 0 at pi*, 1 at the masked reference."""
    with torch.no_grad():
        policy, ref = (
            masked_logprobs(world, each, masks).sum(dim=2).masked_fill(~possible(world, masks), -torch.inf)
            for each in (model, world.load_model())
        )
    best = (ref + world.rewards / beta).log_softmax(dim=1)
    return _kl(policy, best) / _kl(ref, best)


def _kl(logprobs: Tensor, others: Tensor) -> float:
    """Return KL(pi || other), mean over prompts, where impossible responses count nothing."""
    difference = (logprobs - others).masked_fill(logprobs == -torch.inf, 0.0)
    return float((logprobs.exp() * difference).sum(dim=1).mean())
