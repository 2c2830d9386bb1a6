"""Gradients by enumeration: of losses in expectation over every response, and of the objectives they should follow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.rollout import Generation, SamplingSettings

TOLERANCE = 1e-5


class EveryResponse:
    """An engine that answers with all responses instead of samples."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    def sync(self, model: nn.Module) -> None: ...

    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        assert settings.max_new_tokens == self.generation.tokens.shape[1]
        return self.generation


def move(policy: nn.Module) -> None:
    """Add noise to the weights, so that the policy differs from its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def objective_gradient(module: Any, objective: Any) -> dict[str, Tensor]:
    """Return the gradient of `objective(token log-probabilities [P, N, T])` by differentiating it."""
    names, parameters = zip(*module.policy.named_parameters(), strict=True)
    value = objective(module.world.token_logprobs(module.policy, module.rollout.temperature))
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


def regularised_reward(module: Any, beta: float, tokens: Tensor) -> Tensor:
    """Return J, over all responses."""
    world = module.world
    ref = world.logprobs(world.load_model(), module.rollout.temperature)
    logprobs = tokens.double().sum(dim=2)
    return (logprobs.exp() * (world.rewards - beta * (logprobs - ref))).sum(dim=1).mean()


def at_fixed_states(tokens: Tensor, of_token: Tensor) -> Tensor:
    """Return the mean over prompts of sum over t of E[E[x_t | state]], with a gradient in the inner one only."""
    state = (tokens.sum(dim=2, keepdim=True) - tokens).exp().detach()  # summed over what follows: P(state before t)
    return (state * tokens.exp() * of_token).sum(dim=(1, 2)).mean()


def assert_opposite(loss_gradient: dict[str, Tensor], gradient: dict[str, Tensor]) -> None:
    assert max(float(g.abs().max()) for g in gradient.values()) > 0.05
    for name, expected in gradient.items():
        assert float((loss_gradient[name] + expected).abs().max()) <= TOLERANCE, name
