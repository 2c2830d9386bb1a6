"""Every algorithm, trained by the real Trainer, compared with the optimum it should reach. Slow: run with -m slow."""

from __future__ import annotations

import math

import pytest

from tests.exact.enumerable import World
from tests.exact.runs import (
    ON_POLICY,
    ONLINE_DPO,
    train_controlled,
    train_dpo,
    train_on_policy,
    train_online_dpo,
    train_ppo,
    train_reward_model,
)

pytestmark = pytest.mark.slow
SEEDS = [0, 1, 2]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "bound"), [(1.0, 0.01), (0.3, 0.05), (0.1, 0.10)])
def test_ppo_reaches_the_optimum_within_its_regret_bound(beta: float, bound: float, seed: int) -> None:
    result = train_ppo(World(seed=seed), beta, seed)
    assert 0 <= result.regret <= bound


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "which"), [(1.0, 0), (0.3, 1)])
@pytest.mark.parametrize("name", ON_POLICY)
def test_what_samples_reaches_the_optimum_within_its_regret_bound(
    name: str, beta: float, which: int, seed: int
) -> None:
    result = train_on_policy(ON_POLICY[name], World(seed=seed), beta, seed)
    assert 0 <= result.regret <= ON_POLICY[name].bounds[which]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "which"), [(1.0, 0), (0.3, 1)])
def test_online_dpo_on_noisy_labels_reaches_the_optimum_within_its_bound(beta: float, which: int, seed: int) -> None:
    assert 0 <= train_online_dpo(World(seed=seed), beta, seed).regret <= ONLINE_DPO.bounds[which]


@pytest.mark.parametrize("seed", SEEDS)
def test_dpo_reaches_the_optimum_and_its_implicit_reward_is_the_gold_one(seed: int) -> None:
    bound, beta = 1e-3, 1.0
    result = train_dpo(World(seed=seed), beta, seed)
    assert result.kl < bound
    # The implicit reward's error is beta log(pi / pi*) up to a constant, of variance about 2 KL beta^2 under pi. A
    # least-squares slope is off by at most error std / gold std (Cauchy-Schwarz).
    assert abs(result.slope - 1) < beta * math.sqrt(2 * bound) / result.gold_std


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_model_reaches_its_bayes_ceiling_and_the_gold_scale(seed: int) -> None:
    result = train_reward_model(World(seed=seed), seed)
    assert 0.98 * result.bayes_accuracy < result.accuracy <= result.bayes_accuracy
    assert abs(result.slope - 1) < 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_adaptive_controller_holds_its_target_at_the_coefficient_of_the_optimum(seed: int) -> None:
    result = train_controlled(World(seed=seed), target=1.0, seed=seed)
    assert result.kl == pytest.approx(result.target, rel=0.1)
    assert result.coef == pytest.approx(result.beta, rel=0.1)
