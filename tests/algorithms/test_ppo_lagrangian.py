"""PPO under a limit on costs: the multiplier, the advantages, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.algorithms import CostMultiplier, KLPenalty, MultiplierController, RewardShaping
from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import generalized_advantage_estimate, kl_estimate
from rlhf_lightning.rewards import make_cost
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import SGD, count_words, on_policy
from tests.algorithms.test_ppo import STILL, run
from tests.tiny import tiny_model, write_reward_model

FOUR = RolloutSettings(max_new_tokens=6, batch_size=4, samples_per_prompt=4)


def dear(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return a cost that is always above the limit."""
    return [2.0 + len(response.split()) for response in responses]


def test_the_multiplier_follows_the_formula_of_pid_control() -> None:
    """By hand: error 1 and then 0.5, with costs that fall, and then an error of -1."""
    control = MultiplierController(CostMultiplier(init=1.0, kp=0.5, ki=0.1, kd=0.25), limit=2.0)
    assert control.value == 1.0
    control.update(3.0)
    assert control.value == pytest.approx(1.0 + 0.1 * 1 + 0.5 * 1)
    control.update(2.5)
    assert control.value == pytest.approx(1.0 + 0.1 * 1.5 + 0.5 * 0.5)
    control.update(3.5)  # a rise of 1
    assert control.value == pytest.approx(1.0 + 0.1 * 3.0 + 0.5 * 1.5 + 0.25 * 1.0)


def test_the_multiplier_stays_in_its_range_and_leaves_its_ends_at_once() -> None:
    control = MultiplierController(CostMultiplier(init=0.5, kp=0.0, ki=1.0, maximum=2.0), limit=0.0)
    for _ in range(50):
        control.update(10.0)
    assert control.value == 2.0
    control.update(-0.5)
    assert control.value == 1.5
    for _ in range(50):
        control.update(-10.0)
    assert control.value == 0.0
    control.update(0.25)
    assert control.value == 0.25
    with pytest.raises(ValueError, match="cost"):
        control.update(math.nan)


@pytest.mark.parametrize("key", ["value", "integral", "cost"])
def test_every_number_of_the_controller_matters_for_what_follows(key: str) -> None:
    settings = CostMultiplier(init=1.0, kp=0.5, ki=0.1, kd=0.25)
    control = MultiplierController(settings, limit=0.0)
    control.update(1.0)
    state = control.state_dict()
    again, other = (MultiplierController(settings, limit=0.0) for _ in range(2))
    again.load_state_dict(state)
    other.load_state_dict({**state, key: state[key] - 0.5})
    assert again.state_dict() == state
    before = again.value, other.value
    again.update(1.2)
    other.update(1.2)
    control.update(1.2)
    assert control.state_dict() == again.state_dict()
    assert other.value != again.value or before[0] != before[1]


def test_advantages_weigh_the_cost_by_the_multiplier_and_are_whitened_together(tmp_path: Path) -> None:
    """The KL goes with -beta to the reward and +beta to the cost; the multiplier already counts these responses."""
    kl = KLPenalty(kind="fixed", coef=0.3, target=None, horizon=None)
    shared = {"rollout": FOUR, "kl": kl, "cost": dear, "cost_limit": 1.0, "optimizer": SGD}
    plain, data = on_policy("ppo_lagrangian", **shared, whiten_advantages=False)
    watch = run(tmp_path, plain, data, max_epochs=2)
    rollout, weight = plain.last_rollout, plain.multiplier.value
    assert weight > 1.5 and watch.last["cost/multiplier"] == pytest.approx(weight)
    assert watch.last["cost/scores"] == pytest.approx(float(rollout.cost_scores.mean()))
    assert watch.last["cost/safe"] == 0.0
    kls = kl_estimate(rollout.logprobs, rollout.ref_logprobs) * rollout.mask
    assert float(kls.abs().max()) > 1e-3
    at_end = torch.zeros_like(rollout.mask)
    at_end[torch.arange(len(rollout)), rollout.mask.sum(dim=1).long() - 1] = 1.0
    rewards, costs = (s[:, None] * at_end for s in (rollout.scores, rollout.cost_scores))
    estimate = (rollout.mask, plain.gamma, plain.lam)
    of_reward, _ = generalized_advantage_estimate(rewards - 0.3 * kls, rollout.values, *estimate)
    of_cost, returns = generalized_advantage_estimate(costs + 0.3 * kls, rollout.cost_values, *estimate)
    expected = (of_reward - weight * of_cost) / (1 + weight)
    torch.testing.assert_close(rollout.advantages, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.cost_returns, returns, atol=1e-5, rtol=1e-5)

    whitened, data = on_policy("ppo_lagrangian", **shared, whiten_advantages=True)
    run(tmp_path, whitened, data, max_epochs=1)
    valid = whitened.last_rollout.mask.bool()
    assert float(whitened.last_rollout.advantages[valid].mean()) == pytest.approx(0.0, abs=1e-6)


def test_each_critic_learns_its_own_returns_and_both_are_trained(tmp_path: Path) -> None:
    """In both layouts; with the reward's advantages alone, the cost's head would stay at zero."""
    for layout in ("shared", "separate"):
        module, data = on_policy("ppo_lagrangian", layout=layout, cost=dear)
        run(tmp_path, module, data, max_epochs=2)
        networks = module.actor_critic
        assert (
            float(networks.value_head.linear.weight.abs().max())
            > 0
            < float(networks.cost_value_head.linear.weight.abs().max())
        )
        assert not torch.equal(networks.value_head.linear.weight, networks.cost_value_head.linear.weight)
        assert (networks.cost_critic is not None) == (layout == "separate")
        assert len(module.trained_networks()) == (3 if layout == "separate" else 1)
        rollout = module.last_rollout
        assert float((rollout.values - rollout.cost_values).abs().max()) > 0


def test_shaping_leaves_the_cost_in_its_own_unit(tmp_path: Path) -> None:
    module, data = on_policy("ppo_lagrangian", optimizer=STILL, cost=dear, cost_limit=4.0)
    plain = run(tmp_path, module, data).last["cost/scores"]
    shaping = RewardShaping(normalize=True, clip=0.5, missing_eos_penalty=3.0)
    module, data = on_policy("ppo_lagrangian", optimizer=STILL, cost=dear, cost_limit=4.0, shaping=shaping)
    assert run(tmp_path, module, data).last["cost/scores"] == plain


def test_held_out_costs_are_logged_and_change_nothing(tmp_path: Path) -> None:
    found = []
    for val in (None, [{"prompt": "b"}, {"prompt": "c"}]):
        module, data = on_policy("ppo_lagrangian", cost=count_words)
        data.val = val
        watch = run(tmp_path, module, data)
        assert ("val/cost" in watch.last) == (val is not None)
        found.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"kp": 0.0, "ki": 0.0}, r"algorithm\.multiplier\.kp and"),
        ({"init": 6.0}, r"algorithm\.multiplier\.init: found 6"),
        ({"maximum": 0.0}, r"algorithm\.multiplier\.maximum: found 0"),
        ({"kd": -1.0}, r"algorithm\.multiplier\.kd: found -1"),
    ],
)
def test_gains_that_hold_nothing_are_refused(settings: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=f"^{key}"):
        CostMultiplier(**settings)


PPO = ("model.path=org/name", "data.train=org/rows", "reward.function=rlhf_lightning.simulation.gold_reward")
COST = "cost.function=rlhf_lightning.simulation.gold_reward"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (("experiment=ppo", "algorithm=ppo_lagrangian"), r"^cost: PPOLagrangianModule needs it; choose cost=default"),
        (("experiment=ppo_lagrangian",), r"^cost: found no source of costs; give one of cost\.function"),
        (("experiment=ppo_lagrangian", COST, "cost.model=org/cost"), r"^cost: found both; give one of"),
        (("experiment=ppo_lagrangian", COST, "cost.signed=false"), r"^cost\.signed: found false; only a cost model"),
        (("experiment=ppo_lagrangian", COST, "cost.dtype=bfloat16"), r"^cost\.dtype: found bfloat16; only a cost"),
        (("experiment=ppo_lagrangian", "cost.function=gold"), r"^cost\.function: found \"gold\"; must be a dotted"),
        (("experiment=ppo_lagrangian", COST, "algorithm.cost_limit=null"), r"^algorithm\.cost_limit: found null"),
        (("experiment=ppo", "cost=default", COST), r"^cost: found a section; PPOModule has no limit on costs"),
    ],
)
def test_what_cannot_be_right_is_refused_before_training(given: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError, match=line):
        train.check(compose_config("train", [*given, *PPO]))
    train.check(compose_config("train", ["experiment=ppo_lagrangian", COST, *PPO]))


def test_a_reward_model_is_not_a_cost_model_unless_said_so(tmp_path: Path) -> None:
    folder = write_reward_model(tmp_path / "reward", tiny_model())
    with pytest.raises(UserError, match=r"^cost\.model: .* was not trained with sign terms"):
        make_cost(model=str(folder))
    lines = ["experiment=ppo_lagrangian", *PPO, f"cost.model={folder}"]
    with pytest.raises(UserError, match=r"^cost\.model: .* was not trained with sign terms.*cost\.signed=false"):
        check_inputs(compose_config("train", lines))
    check_inputs(compose_config("train", [*lines, "cost.signed=false"]))
    missing = compose_config("train", ["experiment=ppo_lagrangian", *PPO, "cost.function=my.gold"])
    with pytest.raises(UserError, match=r"^cost\.function: cannot import my\.gold"):
        check_inputs(missing)
    assert make_cost(model=str(folder), signed=False).key == "cost.model"  # type: ignore[attr-defined]
