"""The gradients of clipped losses away from ratio 1, in expectation over every group that an older policy samples.

A clipped loss has no objective whose gradient it follows there, so it is compared with its own formula, enumerated.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.exact.enumerable import World
from tests.exact.gradients import assert_opposite, objective_gradient
from tests.exact.test_group_gradient import BETA, all_groups, enumerated

SIZE = 2


@pytest.fixture(scope="module")
def world() -> World:
    return World(vocabulary=3, length=2, n_prompts=4)


def drift(policy: nn.Module) -> None:
    """Move the policy on from the one that has sampled."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))


def gspo(tokens: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    ratios = (tokens - old).mean(dim=-1, keepdim=True).exp()
    return torch.minimum(ratios * advantages, ratios.clamp(1 - 3e-3, 1 + 4e-3) * advantages)


def dapo(tokens: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    ratios = (tokens - old).exp()
    return torch.minimum(ratios * advantages, ratios.clamp(1 - 0.02, 1 + 0.1) * advantages)


def cispo(tokens: Tensor, old: Tensor, advantages: Tensor) -> Tensor:
    return (tokens - old).exp().clamp(max=1.03).detach() * advantages * tokens


SELECTED = {"accuracy": "score", "accuracy_threshold": 0.0, "max_tries": 1}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gspo": (gspo, {"clip_range": 3e-3, "clip_range_high": 4e-3, "ratio": "sequence", "aggregation": "sequence"}),
    "dapo": (dapo, {"clip_range": 0.02, "clip_range_high": 0.1, **SELECTED}),
    "cispo": (cispo, {"loss_type": "cispo", "clip_range": None, "clip_range_high": 0.03}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_clipped_loss_has_the_expectation_of_its_formula_off_policy(world: World, name: str) -> None:
    """Each loss scales with advantages above 0, so weighting them by a group's probability gives its expectation."""
    formula, settings = CASES[name]
    module = enumerated(world, SIZE, estimator="group_mean", scale="std", **settings)
    groups, ref = all_groups(world, SIZE), world.logprobs(world.load_model())
    with torch.no_grad():
        old = world.token_logprobs(module.policy).double()
    rollout, prompts = module.collect(), len(world.prompts)
    sampled = old.sum(dim=2)
    probabilities, order = sampled.exp()[:, groups].prod(dim=2), torch.arange(prompts * len(groups))
    if "accuracy" in settings:  # groups that are all right or all wrong come last, and do not count
        right = world.rewards[:, groups] >= 0
        mixed = right.any(dim=2) & ~right.all(dim=2)
        probabilities = prompts * probabilities * mixed / (probabilities * mixed).sum()
        order = torch.cat([mixed.flatten().nonzero(), (~mixed).flatten().nonzero()]).flatten()
        assert torch.equal(rollout.learned[::SIZE], mixed.flatten()[order].float())
    weights = probabilities.flatten()[order].repeat_interleave(SIZE)
    rollout.advantages = rollout.advantages * weights[:, None].float()
    rollout.responses = float(SIZE * prompts)
    rollout.denominator = rollout.responses * world.length
    drift(module.policy)
    loss, stats = module.loss(rollout)
    loss.backward()
    assert 0.1 < float(stats["policy/clip_fraction"]) < 0.9

    def expected(tokens: Tensor) -> Tensor:
        rewards = (world.rewards - BETA * (sampled - ref))[:, groups]
        spread = rewards.std(dim=2, keepdim=True) + 1e-6
        advantages = ((rewards - rewards.mean(dim=2, keepdim=True)) / spread).unsqueeze(3)
        terms = formula(tokens.double()[:, groups], old[:, groups], advantages)
        return (probabilities * terms.mean(dim=(2, 3))).sum(dim=1).mean()

    assert_opposite({key: p.grad for key, p in module.policy.named_parameters()}, objective_gradient(module, expected))
