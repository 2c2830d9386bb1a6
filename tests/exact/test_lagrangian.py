"""PPO-Lagrangian: its gradient by enumeration, and the optimum under a limit on costs."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_lightning.algorithms import CostMultiplier, KLPenalty, PPOLagrangianModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.rollout import Rollout, RolloutSettings
from tests.exact.costs import CostWorld
from tests.exact.gradients import TOLERANCE, EveryResponse, assert_opposite, move, objective_gradient
from tests.exact.runs import COST_BETA, COST_LIMIT, quiet_trainer, train_lagrangian

BETA = 0.3


class EnumeratedLagrangian(PPOLagrangianModule):
    """PPOLagrangianModule whose rollout is every response to every prompt."""

    world: CostWorld
    true_values: bool

    def prompts(self) -> list[PromptRow]:
        return self.world.everything()[0]

    def advantages(self, rollout: Rollout) -> Any:
        if self.true_values:
            shape = (len(self.world.prompts), -1, self.world.length)
            logprobs = rollout.logprobs.view(shape)
            of_reward, of_cost = (
                self.world.values(logprobs, each.view(shape)).flatten(0, 1).float()
                for each in (rollout.rewards, self.token_costs(rollout))
            )
            rollout.values, rollout.cost_values = of_reward, of_cost
        return super().advantages(rollout)


def enumerated(world: CostWorld, init: float, true_values: bool = False, **kwargs: Any) -> EnumeratedLagrangian:
    """Return the module with a policy moved away from its reference, whose multiplier hardly moves from `init`."""
    rows, generation = world.everything()
    module = EnumeratedLagrangian(
        world.load_model,
        world.tokenizer,
        partial(torch.optim.SGD, lr=0.0),
        reward=world.reward,
        cost=world.cost,
        cost_limit=-1.0,
        multiplier=CostMultiplier(init=init, kp=0.0, ki=0.01),
        rollout=RolloutSettings(max_new_tokens=world.length, batch_size=len(rows)),
        kl=KLPenalty(kind="fixed", coef=BETA),
        engine=EveryResponse(generation),
        whiten_advantages=False,
        value_coef=0.0,
        **kwargs,
    )
    module.world, module.true_values = world, true_values
    module.configure_model()
    module.trainer = quiet_trainer()
    move(module.policy)
    return module


def expected_loss_gradient(module: EnumeratedLagrangian) -> dict[str, Tensor]:
    """Return the gradient of the mean over prompts of E[loss], which is linear in the advantages at ratio 1."""
    rollout = module.collect()
    weights = rollout.logprobs.double().sum(dim=1).exp()[:, None].float()
    rollout.advantages = rollout.advantages * weights
    loss, stats = module.loss(rollout.select(torch.arange(len(rollout)), len(module.world.prompts)))
    assert abs(float(stats["policy/ratio_max"]) - 1) < TOLERANCE
    loss.backward()
    return {name: p.grad for name, p in module.policy.named_parameters()}


def net_objective(module: EnumeratedLagrangian, beta: float, tokens: Tensor) -> Tensor:
    """Return E[(r - lambda c) / (1 + lambda)] - beta KL."""
    world, weight = module.world, module.multiplier.value
    logprobs = tokens.double().sum(dim=2)
    net = (world.rewards - weight * world.costs) / (1 + weight)
    return (logprobs.exp() * (net - beta * (logprobs - world.ref))).sum(dim=1).mean()


@pytest.fixture(scope="module")
def world() -> CostWorld:
    return CostWorld(vocabulary=3, length=2, n_prompts=4)


@pytest.mark.parametrize(("true_values", "lam"), [(False, 1.0), (True, 0.95), (True, 0.0)])
@pytest.mark.parametrize("init", [0.0, 0.7, 3.0])
def test_the_expected_loss_has_the_gradient_of_the_lagrangian(
    world: CostWorld, init: float, true_values: bool, lam: float
) -> None:
    module = enumerated(world, init, true_values, lam=lam)
    loss_gradient = expected_loss_gradient(module)
    assert module.multiplier.value == pytest.approx(init + 0.01 * (float(world.costs.mean()) + 1.0), abs=1e-6)
    assert_opposite(loss_gradient, objective_gradient(module, partial(net_objective, module, BETA)))
    with pytest.raises(AssertionError):  # the comparison notices a KL that the multiplier scales
        assert_opposite(loss_gradient, objective_gradient(module, partial(net_objective, module, BETA / 3)))


def test_the_multiplier_of_a_limit_gives_the_best_reward_at_this_cost_and_kl() -> None:
    """Against 2,000 other tilts of reward and cost: none with as little KL and cost has more reward."""
    world = CostWorld()
    limit = -0.5
    weight = world.multiplier_for(limit, COST_BETA)
    best = world.tilted(weight, COST_BETA)
    assert world.mean_cost(best) == pytest.approx(limit, abs=1e-9)
    assert world.lagrangian_regret(best, weight, COST_BETA) == pytest.approx(0.0, abs=1e-12)
    assert world.lagrangian_regret(world.ref, weight, COST_BETA) == 1.0
    generator = torch.Generator().manual_seed(0)
    found = 0
    for a, b in torch.rand(2000, 2, generator=generator).mul(4).tolist():
        other = (world.ref + a * world.rewards - b * world.costs).log_softmax(dim=1)
        if world.kl(other) <= world.kl(best) and world.mean_cost(other) <= limit:
            found += 1
            assert world.mean_reward(other) <= world.mean_reward(best) + 1e-9
    assert found > 20


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_limit_is_held_and_the_reward_is_the_constrained_optimum(seed: int) -> None:
    result = train_lagrangian(CostWorld(length=2, n_prompts=4, seed=seed), seed)
    assert abs(result.cost - COST_LIMIT) <= 0.05 * abs(COST_LIMIT)
    assert result.regret <= 0.05
    assert result.reward >= 0.95 * result.best_reward
