"""The gradients of losses on chosen responses, in expectation over every group, equal those of their formulas."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.algorithms import KLPenalty, OnlineDPOModule, RAFTModule
from tests.exact.enumerable import World
from tests.exact.gradients import assert_opposite, objective_gradient
from tests.exact.test_group_gradient import EnumeratedGroups, all_groups, enumerated

NO_KL = KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None)


class EnumeratedPairs(OnlineDPOModule):
    """OnlineDPOModule whose rollout is every group."""

    prompts = EnumeratedGroups.prompts


class EnumeratedBest(RAFTModule):
    """RAFTModule whose rollout is every group."""

    prompts = EnumeratedGroups.prompts


@pytest.fixture(scope="module")
def world() -> World:
    return World(vocabulary=3, length=2, n_prompts=4)


def expected_loss(module: Any, per_group: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the mean over prompts of E[loss of a group], and its gradient: rows weighted by their probability."""
    rollout, world, size = module.collect(), module.world, module.rollout.samples_per_prompt
    logprobs = world.logprobs(module.policy)
    probabilities = logprobs.exp()[:, all_groups(world, size)].prod(dim=2).flatten().float()
    rollout.learned = rollout.learned * probabilities.repeat_interleave(per_group)
    rollout.responses = float(per_group * len(world.prompts))
    rollout.denominator = rollout.responses * world.length
    loss, _ = module.loss(rollout)
    loss.backward()
    return loss.detach(), {key: p.grad for key, p in module.policy.named_parameters()}


CASES = [(2, "sigmoid"), pytest.param(3, "sigmoid", marks=pytest.mark.slow), (2, "ipo")]


@pytest.mark.parametrize(("size", "loss_type"), CASES)
def test_online_dpo_is_dpo_of_best_and_worst_over_groups_that_differ(world: World, size: int, loss_type: str) -> None:
    beta, groups = 0.7, all_groups(world, size)
    module = enumerated(world, size, NO_KL, EnumeratedPairs, beta=beta, loss_type=loss_type)
    sampled, ref = world.logprobs(module.policy), world.logprobs(world.load_model())
    rewards = world.rewards[:, groups]
    best, worst = (groups.expand(len(rewards), -1, -1).gather(2, end).squeeze(2) for end in ends(rewards))
    weights = sampled.exp()[:, groups].prod(dim=2) * (best != worst)

    def objective(tokens: Tensor) -> Tensor:
        ratios = tokens.double().sum(dim=2) - ref
        h = ratios.gather(1, best) - ratios.gather(1, worst)
        if loss_type == "ipo":
            return -(weights * (h / world.length - 1 / (2 * beta)).square()).sum(dim=1).mean()
        return (weights * logsigmoid(beta * h)).sum(dim=1).mean()

    loss, gradient = expected_loss(module, 2)
    assert_opposite(gradient, objective_gradient(module, objective))
    with torch.no_grad():
        wanted = -objective(world.token_logprobs(module.policy))
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)


def test_raft_is_the_likelihood_of_the_best_over_groups_that_differ(world: World) -> None:
    size = 2
    groups = all_groups(world, size)
    module = enumerated(world, size, NO_KL, EnumeratedBest)
    sampled, rewards = world.logprobs(module.policy), world.rewards[:, groups]
    best, worst = (groups.expand(len(rewards), -1, -1).gather(2, end).squeeze(2) for end in ends(rewards))
    weights = sampled.exp()[:, groups].prod(dim=2) * (best != worst)

    def objective(tokens: Tensor) -> Tensor:
        return (weights * tokens.double().mean(dim=2).gather(1, best)).sum(dim=1).mean()

    _, gradient = expected_loss(module, 1)
    assert_opposite(gradient, objective_gradient(module, objective))


def ends(rewards: Tensor) -> tuple[Tensor, Tensor]:
    """Return the places of the best and the worst response of each group, [P, M, 1]."""
    return rewards.argmax(dim=2, keepdim=True), rewards.argmin(dim=2, keepdim=True)
