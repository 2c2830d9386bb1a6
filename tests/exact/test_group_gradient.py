"""The gradients of losses without a critic, in expectation over every group of responses, without sampling.

The responses of a group are drawn independently, so a group's probability is the product of theirs. What is
deliberately biased, by the group's standard deviation, is compared with its own expectation, computed from its formula.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms import KLPenalty, PolicyGradientModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.rollout import Generation, RolloutSettings
from tests.exact.enumerable import World
from tests.exact.gradients import (
    TOLERANCE,
    EveryResponse,
    assert_opposite,
    at_fixed_states,
    move,
    objective_gradient,
    regularised_reward,
)
from tests.exact.runs import quiet_trainer

BETA = 0.3


def all_groups(world: World, size: int) -> Tensor:
    """Return the numbers of the responses in every ordered group, [N^size, size]."""
    return torch.tensor(list(product(range(len(world.responses)), repeat=size)))


class EnumeratedGroups(PolicyGradientModule):
    """PolicyGradientModule whose rollout is every group of responses to every prompt."""

    world: World

    def prompts(self) -> list[PromptRow]:
        count = len(self.world.responses) ** self.rollout.samples_per_prompt
        return [PromptRow(ids, self.world.text(ids), {}) for ids in self.world.prompts for _ in range(count)]


def enumerated(
    world: World, size: int, kl: KLPenalty | None = None, kind: Any = EnumeratedGroups, **kwargs: Any
) -> Any:
    """Return the module with a policy moved away from its reference."""
    numbers = all_groups(world, size).flatten()
    tokens = world.responses[numbers].repeat(len(world.prompts), 1)
    zeros = torch.zeros(tokens.shape)
    generation = Generation(tokens, torch.ones_like(zeros), zeros, torch.zeros(len(tokens), dtype=torch.bool))
    module = kind(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.SGD, lr=0.0),
        reward=world.reward,
        rollout=RolloutSettings(max_new_tokens=world.length, batch_size=len(tokens) // size, samples_per_prompt=size),
        kl=kl or KLPenalty(kind="fixed", coef=BETA),
        engine=EveryResponse(generation),
        **kwargs,
    )
    module.world = world
    module.configure_model()
    module.trainer = quiet_trainer()
    move(module.policy)
    return module


def expected_loss_gradient(module: EnumeratedGroups, row_by_row: bool = False) -> dict[str, Tensor]:
    """Return the gradient of the mean over prompts of E[loss of a group], the mean loss over its responses.

    At ratio 1 the policy loss is linear in the advantages, so one batch with weighted advantages is enough. Terms
    without advantages are weighted through the divisor of sums, one response at a time.
    """
    size, length, n_prompts = module.rollout.samples_per_prompt, module.world.length, len(module.world.prompts)
    rollout = module.collect()
    probabilities = rollout.logprobs.double().sum(dim=1).exp().view(-1, size).prod(dim=1)
    weights = probabilities.repeat_interleave(size)
    if row_by_row:
        batches = [(rollout.select(torch.tensor([i]), 1.0), size * n_prompts / float(w)) for i, w in enumerate(weights)]
    else:
        rollout.advantages = rollout.advantages * weights[:, None].float()
        batches = [(rollout, float(size * n_prompts))]
    for batch, responses in batches:
        batch.responses, batch.denominator = responses, responses * length
        loss, stats = module.loss(batch)
        assert abs(float(stats["policy/ratio_max"]) - 1) < TOLERANCE
        loss.backward()
    return {name: p.grad for name, p in module.policy.named_parameters()}


def scaled(gradient: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {name: factor * g for name, g in gradient.items()}


@pytest.fixture(scope="module")
def world() -> World:
    return World(vocabulary=3, length=2, n_prompts=4)


PER_TOKEN = 2.0  # every response has two tokens, and losses are means per token
LOSSES: dict[str, dict[str, Any]] = {
    "clipped": {},
    "mean over responses of means": {"aggregation": "sequence"},
    "plain": {"clip_range": None},
    "plain, mean over responses of means": {"clip_range": None, "aggregation": "sequence"},
    "weighted by clipped ratios": {"loss_type": "cispo", "clip_range": None, "clip_range_high": 4.0},
    "ratio of the sequence": {"ratio": "sequence"},
    "ratio of the sequence, mean over responses": {"ratio": "sequence", "aggregation": "sequence"},
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("estimator", ["returns", "group_mean", "leave_one_out"])
def test_the_expected_loss_has_the_gradient_of_the_objective(world: World, estimator: str, loss: str) -> None:
    """The mean of a group includes the response itself, which shrinks the gradient by (G - 1) / G without turning it.

    With returns, a sequence's ratio does not weight the rewards to come of each token, so it is tested with groups
    only.
    """
    if estimator == "returns" and "ratio" in loss:
        pytest.skip("advantages that differ within a response")
    size = 1 if estimator == "returns" else 2
    module = enumerated(world, size, estimator=estimator, **LOSSES[loss])
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    factor = 0.5 if estimator == "group_mean" else 1.0
    assert_opposite(scaled(expected_loss_gradient(module), PER_TOKEN / factor), gradient)


@pytest.fixture(scope="module")
def smallest_world() -> World:
    """Return a world of four responses to a prompt: 64 groups of three."""
    return World(vocabulary=2, length=2, n_prompts=4)


@pytest.mark.parametrize(("estimator", "factor"), [("group_mean", 2 / 3), ("leave_one_out", 1.0)])
def test_so_it_has_for_groups_of_three(smallest_world: World, estimator: str, factor: float) -> None:
    module = enumerated(smallest_world, 3, estimator=estimator)
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    assert_opposite(scaled(expected_loss_gradient(module), PER_TOKEN / factor), gradient)


def test_a_constant_divisor_takes_the_place_of_the_number_of_tokens(world: World) -> None:
    module = enumerated(world, 2, estimator="leave_one_out", denominator=0.25)
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    assert_opposite(scaled(expected_loss_gradient(module), 0.25), gradient)


@pytest.mark.parametrize("estimator", ["group_mean", "leave_one_out"])
def test_dividing_by_the_groups_spread_has_the_expectation_of_its_formula(world: World, estimator: str) -> None:
    module = enumerated(world, 2, estimator=estimator, scale="std")
    groups, ref = all_groups(world, 2), world.logprobs(world.load_model())

    def weighted(tokens: Tensor) -> Tensor:
        """Return the mean over prompts of E[1/G sum_i A_i log pi(y_i)], with A and the expectation held fixed."""
        logprobs = tokens.double().sum(dim=2)
        rewards = (world.rewards - BETA * (logprobs.detach() - ref))[:, groups]
        difference = rewards[:, :, 0] - rewards[:, :, 1]
        spread = difference.abs() / 2**0.5 + 1e-6  # the standard deviation of two numbers, with n - 1
        own = difference / (1.0 if estimator == "leave_one_out" else 2.0) / spread
        advantages = torch.stack([own, -own], dim=2)
        probabilities = logprobs.detach().exp()[:, groups].prod(dim=2)
        return (probabilities * (advantages * logprobs[:, groups]).mean(dim=2)).sum(dim=1).mean()

    loss_gradient = scaled(expected_loss_gradient(module), PER_TOKEN)
    assert_opposite(loss_gradient, objective_gradient(module, weighted))
    plain = objective_gradient(module, partial(regularised_reward, module, BETA))
    with pytest.raises(AssertionError):
        assert_opposite(loss_gradient, plain)


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_kl_in_the_loss_has_its_gradient_at_fixed_states(world: World, kind: str, aggregation: str) -> None:
    """k2 has the gradient of KL(policy || reference), and k3 that of KL(reference || policy)."""
    kl = KLPenalty(kind="fixed", coef=BETA, placement="loss", estimator=kind)  # type: ignore[arg-type]
    module = enumerated(world, 1, kl, estimator="returns", aggregation=aggregation)
    with torch.no_grad():
        ref = world.token_logprobs(world.load_model())

    def objective(tokens: Tensor) -> Tensor:
        if kind == "k2":
            penalty = at_fixed_states(tokens, tokens - ref)
        else:
            state = (tokens.sum(dim=2, keepdim=True) - tokens).exp().detach()
            penalty = (state * ref.exp() * (ref - tokens)).sum(dim=(1, 2)).mean()
        return regularised_reward(module, 0.0, tokens) - BETA * penalty

    loss_gradient = scaled(expected_loss_gradient(module, row_by_row=True), PER_TOKEN)
    assert_opposite(loss_gradient, objective_gradient(module, objective))


def test_a_group_without_its_own_response_is_further_from_it_by_g_over_g_minus_1(smallest_world: World) -> None:
    """Exactly, up to float32 rounding: A(GRPO without std) = (G - 1) / G A(RLOO)."""
    for size in (2, 3):
        mean, others = (
            enumerated(smallest_world, size, estimator=name).collect() for name in ("group_mean", "leave_one_out")
        )
        assert mean.advantages.abs().max() > 0.5
        torch.testing.assert_close(mean.advantages, (size - 1) / size * others.advantages, rtol=1e-6, atol=1e-7)
