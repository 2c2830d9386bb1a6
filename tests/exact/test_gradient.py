"""PPO's gradient, in expectation over every response, is that of the objective, without sampling or training.

At ratio 1 the clipped loss of every response, weighted by its probability and summed, is the expectation of the loss.
Its gradient must be minus that of J, computed by differentiating J itself. A wrong mask, shift, sign, temperature or
normalisation shows up here.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms import KLPenalty, PPOModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.rollout import Rollout, RolloutSettings
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


class EnumeratedPPO(PPOModule):
    """PPOModule whose rollout is every response to every prompt."""

    baseline: str
    world: World

    def prompts(self) -> list[PromptRow]:
        return self.world.everything()[0]

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        if self.baseline == "true values":
            shape = (len(self.world.prompts), -1, self.world.length)
            values = self.world.values(rollout.logprobs.view(shape), rollout.rewards.view(shape))
            rollout.values = values.flatten(0, 1).float()
        return super().advantages(rollout)


def enumerated(
    world: World, baseline: str = "zero", temperature: float = 1.0, kl: KLPenalty | None = None, **kwargs: Any
) -> EnumeratedPPO:
    """Return the module with a policy moved away from its reference."""
    rows, generation = world.everything()
    module = EnumeratedPPO(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.SGD, lr=0.0),
        reward=world.reward,
        rollout=RolloutSettings(max_new_tokens=world.length, batch_size=len(rows), temperature=temperature),
        kl=kl or KLPenalty(kind="fixed", coef=BETA),
        engine=EveryResponse(generation),
        whiten_advantages=False,
        value_coef=0.0,
        **kwargs,
    )
    module.baseline, module.world = baseline, world
    module.configure_model()
    module.trainer = quiet_trainer()
    move(module.policy)
    return module


def expected_loss_gradient(module: EnumeratedPPO, row_by_row: bool = False) -> dict[str, Tensor]:
    """Return the gradient of the mean over prompts of E[loss of the response].

    The policy loss is linear in the advantages at ratio 1, so one batch with weighted advantages is enough. Terms
    without advantages are weighted through the denominator, one response at a time.
    """
    rollout = module.collect()
    probabilities = rollout.logprobs.double().sum(dim=1).exp()
    n_prompts = len(module.world.prompts)
    if row_by_row:
        batches = [rollout.select(torch.tensor([i]), n_prompts / float(p)) for i, p in enumerate(probabilities)]
    else:
        rollout.advantages = rollout.advantages * probabilities[:, None].float()
        batches = [rollout.select(torch.arange(len(rollout)), n_prompts)]
    for batch in batches:
        loss, stats = module.loss(batch)
        assert abs(float(stats["policy/ratio_max"]) - 1) < TOLERANCE
        loss.backward()
    return {name: p.grad for name, p in module.policy.named_parameters()}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def small_world() -> World:
    return World(vocabulary=3, length=2, n_prompts=4)


@pytest.mark.parametrize(
    ("baseline", "lam"), [("zero", 1.0), ("true values", 1.0), ("true values", 0.95), ("true values", 0.0)]
)
def test_the_expected_loss_has_the_gradient_of_the_objective(world: World, baseline: str, lam: float) -> None:
    module = enumerated(world, baseline, lam=lam)
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    assert_opposite(expected_loss_gradient(module), gradient)


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_so_it_has_at_other_temperatures(world: World, temperature: float) -> None:
    module = enumerated(world, lam=1.0, temperature=temperature)
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    assert_opposite(expected_loss_gradient(module), gradient)


def test_a_biased_estimator_is_told_apart(world: World) -> None:
    """Zero values with lambda below 1 are not a baseline: the comparison must notice."""
    module = enumerated(world, lam=0.95)
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    with pytest.raises(AssertionError):
        assert_opposite(expected_loss_gradient(module), gradient)


def test_k2_in_the_loss_has_the_gradient_of_the_objective_for_one_token() -> None:
    world = World(vocabulary=4, length=1)
    module = enumerated(world, lam=1.0, kl=KLPenalty(kind="fixed", coef=BETA, placement="loss"))
    gradient = objective_gradient(module, partial(regularised_reward, module, BETA))
    assert_opposite(expected_loss_gradient(module, row_by_row=True), gradient)


def test_k2_in_the_loss_holds_the_states_fixed_for_several_tokens(small_world: World) -> None:
    """Every token's KL acts on that token alone; in the reward it also acts on the tokens that led there."""
    module = enumerated(small_world, lam=1.0, kl=KLPenalty(kind="fixed", coef=BETA, placement="loss"))
    with torch.no_grad():
        ref = small_world.token_logprobs(small_world.load_model())

    def objective(tokens: Tensor) -> Tensor:
        return regularised_reward(module, 0.0, tokens) - BETA * at_fixed_states(tokens, tokens - ref)

    loss_gradient = expected_loss_gradient(module, row_by_row=True)
    assert_opposite(loss_gradient, objective_gradient(module, objective))
    with pytest.raises(AssertionError):
        assert_opposite(loss_gradient, objective_gradient(module, partial(regularised_reward, module, BETA)))


def test_the_entropy_bonus_has_the_gradient_of_the_entropy_at_fixed_states(small_world: World) -> None:
    module = enumerated(small_world, lam=1.0, entropy_coef=0.5)

    def objective(tokens: Tensor) -> Tensor:
        return regularised_reward(module, BETA, tokens) - 0.5 * at_fixed_states(tokens, tokens)

    assert_opposite(expected_loss_gradient(module, row_by_row=True), objective_gradient(module, objective))
