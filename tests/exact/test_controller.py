"""The adaptive controller around an optimiser that is perfect: the policy is always the optimum of the coefficient."""

from __future__ import annotations

import pytest

from rlhf_lightning.algorithms import AdaptiveKLController, KLController, MultiplicativeKLController, PIDController
from tests.exact.enumerable import World

RESPONSES = 1024


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def close_the_loop(world: World, controller: KLController, iterations: int) -> tuple[float, float]:
    """KL of the last policy and the coefficient it is the optimum of."""
    for _ in range(iterations):
        coef = controller.value
        kl = world.kl(world.optimum(coef))
        controller.update(kl, RESPONSES)
    return kl, coef


@pytest.mark.parametrize("target", [0.3, 1.0, 2.5])
def test_bisection_finds_the_coefficient_of_a_target(world: World, target: float) -> None:
    beta = world.beta_for(target)
    assert world.kl(world.optimum(beta)) == pytest.approx(target, rel=1e-6)
    assert world.kl(world.optimum(1.01 * beta)) < target < world.kl(world.optimum(0.99 * beta))


@pytest.mark.parametrize("start", [0.1, 5.0])
@pytest.mark.parametrize("target", [0.3, 1.0, 2.5])
def test_the_adaptive_controller_finds_it_too(world: World, target: float, start: float) -> None:
    kl, coef = close_the_loop(world, AdaptiveKLController(start, target, horizon=10_000), iterations=300)
    assert kl == pytest.approx(target, rel=0.02)
    assert coef == pytest.approx(world.beta_for(target), rel=0.02)


@pytest.mark.parametrize("start", [0.1, 5.0])
@pytest.mark.parametrize("target", [0.3, 1.0, 2.5])
def test_so_does_a_pid_controller_with_gains_for_a_policy_that_follows_at_once(
    world: World, target: float, start: float
) -> None:
    kl, coef = close_the_loop(world, PIDController(start, target, kp=0.2, ki=0.2), iterations=100)
    assert kl == pytest.approx(target, rel=0.02)
    assert coef == pytest.approx(world.beta_for(target), rel=0.02)


def test_the_multiplicative_controller_ends_in_its_band(world: World) -> None:
    kl, _ = close_the_loop(world, MultiplicativeKLController(5.0, target=1.0), iterations=50)
    assert 1 / 1.5 <= kl <= 1.5
