"""KL controllers in closed loop: around the exact optimum, and around policies that follow slowly."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
import yaml

from rlhf_lightning.algorithms import (
    AdaptiveKLController,
    KLController,
    KLPenalty,
    MultiplicativeKLController,
    PIDController,
)
from tests.exact.enumerable import World

RESPONSES = 1024


# ---- the policy is always the optimum of the coefficient


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def close_the_loop(world: World, controller: KLController, iterations: int) -> tuple[float, float]:
    """Return KL of the last policy, and the coefficient whose optimum it is."""
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


# ---- policies that follow slowly, seen through noise


@dataclass(frozen=True)
class Follower:
    """A policy whose KL moves towards gain * (coef / 0.2) ** -elasticity, a share of the way per iteration.

    Args:
        gain: KL that it settles at with a coefficient of 0.2, in nats.
        elasticity: relative change of that KL per relative change of the coefficient; PPO on the demo has about 0.2.
        share: share of the way per iteration, at the initial learning rate.
        delay: iterations until a coefficient takes effect.
        noise: relative standard deviation of a measurement.
        decays: the learning rate, and so the share, comes down to 0 over the run.
    """

    gain: float = 1.6
    elasticity: float = 0.3
    share: float = 0.25
    delay: int = 0
    noise: float = 0.05
    decays: bool = False

    def run(self, controller: KLController, iterations: int = 60, seed: int = 0) -> list[float]:
        """Return the KL of each iteration, without the controller's measurement noise."""
        random, kl, kls = Random(seed), 0.0, []
        felt = [controller.value] * (self.delay + 1)
        for step in range(iterations):
            kls.append(kl)
            share = self.share * (1 - step / iterations if self.decays else 1)
            kl += share * (self.gain * (felt[-1 - self.delay] / 0.2) ** -self.elasticity - kl)
            controller.update(kls[-1] * (1 + self.noise * random.gauss(0, 1)), RESPONSES)
            felt.append(controller.value)
        return kls


FOLLOWERS = {
    "the demo's": Follower(decays=True),
    "farther than the target": Follower(gain=2.5),
    "nearer than the target": Follower(gain=1.2),
    "hardly moved by the coefficient": Follower(elasticity=0.15),
    "moved much by it": Follower(elasticity=1.0, share=0.1),
    "slow": Follower(share=0.1),
    "late": Follower(delay=2),
    "noisy": Follower(noise=0.1),
}
DEMO = yaml.safe_load((Path(__file__).parents[2] / "conf/experiment/ppo_demo.yaml").read_text())["algorithm"]["kl"]
GAINS = {"default": {}, "the demo's": {name: DEMO[name] for name in ("kp", "ki", "kd") if name in DEMO}}


@pytest.mark.parametrize("gains", GAINS)
@pytest.mark.parametrize("name", FOLLOWERS)
def test_pid_holds_the_target_over_the_last_ten_iterations(name: str, gains: str) -> None:
    for seed in range(10):
        kls = FOLLOWERS[name].run(PIDController(0.2, 1.8, **GAINS[gains]), seed=seed)
        assert sum(kls[-10:]) / 10 == pytest.approx(1.8, rel=0.1), seed


EXTREMES = {
    "exactly 0": [0.0],
    "estimates below 0": [-0.3, -5.0],
    "below 0 without end": [-math.inf],
    "huge": [1e6, 1e300],
    "without end": [math.inf],
    "from one end to the other": [0.0, math.inf, -math.inf, 1e9],
}


@pytest.mark.parametrize("seen", EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("kind", ["adaptive", "multiplicative", "pid"])
def test_a_coefficient_is_positive_whatever_is_measured_and_then_finds_its_target(kind: str, seen: list[float]) -> None:
    penalty = KLPenalty(kind=kind, coef=0.2, target=1.8, horizon=2000, kp=3.0, ki=0.5, kd=1.0)  # type: ignore[arg-type]
    controller = penalty.controller()
    for step in range(200):
        controller.update(seen[step % len(seen)], RESPONSES)
        assert 0 < controller.value < math.inf
    kls = Follower().run(controller, iterations=1000)
    band = 0.5 if kind == "multiplicative" else 0.1  # it only promises its band, a factor of 1.5
    assert all(kl == pytest.approx(1.8, rel=band) for kl in kls[-10:])


@pytest.mark.parametrize("kind", ["adaptive", "multiplicative", "pid", "fixed"])
def test_a_loop_that_is_cut_goes_on_bitwise(kind: str) -> None:
    """The state passes through JSON, as in a checkpoint, into a controller that has seen other things."""
    penalty = KLPenalty(kind=kind, coef=0.2, target=1.8, horizon=2000, kd=0.5)  # type: ignore[arg-type]
    whole, cut = penalty.controller(), penalty.controller()
    plant = Follower()
    plant.run(whole, iterations=7)
    plant.run(cut, iterations=7)
    restored = penalty.controller()
    restored.update(50.0, RESPONSES)
    restored.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    assert restored.value == whole.value
    assert plant.run(restored, seed=1) == plant.run(whole, seed=1)
