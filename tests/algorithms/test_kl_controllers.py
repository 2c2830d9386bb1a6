import math
from typing import Any

import pytest

from rlhf_lightning.algorithms import (
    AdaptiveKLController,
    FixedKLController,
    KLPenalty,
    MultiplicativeKLController,
    PIDController,
)
from rlhf_lightning.errors import UserError


def test_adaptive_is_equation_4_of_ziegler() -> None:
    controller = AdaptiveKLController(init_coef=0.2, target=6.0, horizon=10_000)
    controller.update(6.6, n_episodes=512)  # error 0.1, inside the clip
    assert controller.value == pytest.approx(0.2 * (1 + 0.1 * 512 / 10_000))
    controller.update(60.0, n_episodes=512)  # error clipped to 0.2
    assert controller.value == pytest.approx(0.2 * (1 + 0.1 * 0.0512) * (1 + 0.2 * 0.0512))
    controller = AdaptiveKLController(0.2, 6.0, 10_000)
    controller.update(0.0, n_episodes=512)
    assert controller.value == pytest.approx(0.2 * (1 - 0.2 * 0.0512))


def test_multiplicative_moves_only_outside_its_band() -> None:
    controller = MultiplicativeKLController(init_coef=1.0, target=2.0)
    for kl, value in ((2.9, 1.0), (3.1, 1.5), (1.34, 1.5), (1.3, 1.0)):
        controller.update(kl, n_episodes=64)
        assert controller.value == pytest.approx(value)


def test_fixed_never_moves() -> None:
    controller = FixedKLController(0.3)
    controller.update(100.0, 10_000)
    assert controller.value == 0.3


@pytest.mark.parametrize("kind", ["adaptive", "multiplicative"])
def test_the_closed_loop_settles_within_a_tenth_of_the_target(kind: str) -> None:
    """A policy whose KL follows the coefficient as KL = 4 / coef, with 10 % noise."""
    controller = KLPenalty(kind=kind, coef=0.05, target=5.0, horizon=2_000).controller()  # type: ignore[arg-type]
    history = []
    for step in range(400):
        kl = 4.0 / controller.value
        history.append(kl)
        controller.update(kl * (1 + 0.1 * (-1) ** step), n_episodes=256)
    band = 0.1 if kind == "adaptive" else 0.5  # the multiplicative controller only promises its band, a factor of 1.5
    assert all(abs(kl - 5.0) <= band * 5.0 for kl in history[-50:])


@pytest.mark.parametrize("n_episodes", [0, 1, 49, 50, 128, 250, 251, 500, 100_000])
@pytest.mark.parametrize("kl", [-math.inf, -3.0, 0.0, 5.9, 6.0, 6.5, 60.0, math.inf])
def test_an_adaptive_coefficient_is_positive_and_moves_by_at_most_a_fifth(kl: float, n_episodes: int) -> None:
    """With more than five horizons' episodes in one iteration, equation 4 alone is negative."""
    controller = AdaptiveKLController(init_coef=0.2, target=6.0, horizon=50)
    controller.update(kl, n_episodes)
    assert 0.8 * 0.2 <= controller.value <= 1.2 * 0.2
    if n_episodes <= 50:
        error = min(max((kl - 6.0) / 6.0, -0.2), 0.2)
        assert controller.value == 0.2 * (1 + error * n_episodes / 50)  # bitwise the paper's


@pytest.mark.parametrize(("horizon", "n_episodes"), [(10, 128), (1, 4096), (50, 251)])
def test_a_horizon_shorter_than_an_iteration_settles(horizon: int, n_episodes: int) -> None:
    """The same policy as above, for which equation 4 alone oscillates more and more."""
    controller = AdaptiveKLController(init_coef=0.05, target=5.0, horizon=horizon)
    for _ in range(200):
        kl = 4.0 / controller.value
        controller.update(kl, n_episodes)
    assert kl == pytest.approx(5.0, rel=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaptiveKLController(0.1, 6.0, 10),
        lambda: MultiplicativeKLController(0.1, 6.0),
        lambda: PIDController(0.1, 6.0),
    ],
)
@pytest.mark.parametrize("extreme", [0.0, math.inf])
def test_a_coefficient_comes_back_from_where_ten_thousand_iterations_have_driven_it(make: Any, extreme: float) -> None:
    controller = make()
    for _ in range(10_000):
        controller.update(extreme, 64)
    assert 0 < controller.value < math.inf
    for _ in range(200):
        controller.update(math.inf - extreme if extreme == 0 else 0.0, 64)
    assert (controller.value > 0.1) == (extreme == 0)


@pytest.mark.parametrize("kind", ["adaptive", "multiplicative", "pid"])
def test_a_kl_that_is_nan_is_an_error_and_leaves_the_coefficient(kind: str) -> None:
    controller = KLPenalty(kind=kind).controller()  # type: ignore[arg-type]
    with pytest.raises(UserError, match="objective/kl is nan"):
        controller.update(math.nan, 64)
    assert controller.value == 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"coef": 0.0}, r"coef: found 0\.0; must be above 0: a coefficient that is only ever multiplied stays 0"),
        ({"coef": 0, "kind": "multiplicative"}, "coef: found 0; must be above 0"),
        ({"coef": -0.1}, r"coef: found -0\.1"),
        ({"coef": -0.1, "kind": "fixed"}, r"coef: found -0\.1; must be a number >= 0"),
        ({"coef": math.nan}, "coef: found nan"),
        ({"coef": math.inf}, "coef: found inf"),
        ({"target": 0.0}, r"target: found 0\.0; must be a number > 0 or null"),
        ({"target": -1.0, "kind": "multiplicative"}, r"target: found -1\.0"),
        ({"target": None}, "target: found null, but algorithm.kl.kind=adaptive needs it"),
        ({"horizon": 0}, "horizon: found 0; must be a whole number >= 1 or null"),
        ({"horizon": None}, "horizon: found null"),
        ({"kind": "pid", "coef": 0.0}, r"coef: found 0\.0"),
        ({"kind": "pid", "target": None}, "target: found null, but algorithm.kl.kind=pid"),
        ({"kind": "pid", "kp": -1.0}, r"kp: found -1\.0"),
        ({"kind": "pid", "ki": math.inf}, "ki: found inf"),
        ({"kind": "pid", "kd": math.nan}, "kd: found nan"),
        ({"kind": "pid", "kp": 0.0, "ki": 0.0}, "kp and algorithm.kl.ki: found 0 and 0"),
    ],
)
def test_what_no_controller_can_work_with_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^algorithm\.kl\.{message}"):
        KLPenalty(**settings)


def test_a_fixed_coefficient_may_be_0_and_needs_neither_target_nor_horizon() -> None:
    assert KLPenalty(kind="fixed", coef=0.0, target=None, horizon=None).controller().value == 0.0
    assert KLPenalty(kind="multiplicative", horizon=None).controller().value == 0.1


def test_pid_is_the_literal_formula_on_the_logarithm() -> None:
    controller = PIDController(init_coef=0.2, target=2.0, kp=1.5, ki=0.25, kd=0.5)
    errors: list[float] = []
    for kl in (0.0, 1.0, 3.0, 50.0, 2.0):
        errors.append(min(max((kl - 2) / 2, -1), 1))
        before = errors[-2] if len(errors) > 1 else 0.0
        controller.update(kl, n_episodes=512)
        exponent = 1.5 * errors[-1] + 0.25 * sum(errors) + 0.5 * (errors[-1] - before)
        assert controller.value == pytest.approx(0.2 * math.exp(exponent))


@pytest.mark.parametrize("start", [0.2, 0.8, 3.0])
def test_pid_holds_the_target_of_a_policy_that_follows_slowly(start: float) -> None:
    """In each iteration the policy moves a tenth of the way to where the coefficient would hold it, KL = 4 / coef."""
    histories = {}
    for name, controller in (
        ("pid", PIDController(start, target=5.0)),
        ("adaptive", AdaptiveKLController(start, target=5.0, horizon=2_000)),
    ):
        kl, histories[name] = 0.0, []
        for _ in range(40):
            kl += 0.1 * (4.0 / controller.value - kl)
            histories[name].append(kl)
            controller.update(kl, n_episodes=512)
    worst = {name: max(abs(kl - 5.0) for kl in history[-10:]) for name, history in histories.items()}
    assert worst["pid"] < 0.5
    assert worst["pid"] < worst["adaptive"]


def test_a_resumed_pid_goes_on_where_it_was() -> None:
    def run(cut: bool) -> list[float]:
        controller, values = PIDController(0.1, 2.0, kd=0.3), []
        for step, kl in enumerate((0.0, 0.5, 1.5, 3.0, 2.5, 1.8)):
            if cut and step == 3:
                state, controller = controller.state_dict(), PIDController(0.1, 2.0, kd=0.3)
                controller.load_state_dict(state)
            controller.update(kl, 64)
            values.append(controller.value)
        return values

    assert run(cut=True) == run(cut=False)


@pytest.mark.parametrize("kind", ["adaptive", "multiplicative", "pid", "fixed"])
def test_every_state_key_is_restored(kind: str) -> None:
    penalty = KLPenalty(kind=kind, coef=0.1)  # type: ignore[arg-type]
    saved = penalty.controller()
    saved.value = 0.7
    loaded = penalty.controller()
    loaded.load_state_dict(saved.state_dict())
    assert loaded.value == 0.7


def test_the_estimator_follows_the_placement_and_k1_in_the_loss_is_refused() -> None:
    assert KLPenalty().kl_kind == "k1"
    assert KLPenalty(placement="loss").kl_kind == "k2"
    assert KLPenalty(placement="loss", estimator="k3").kl_kind == "k3"
    with pytest.raises(UserError, match=r"algorithm\.kl\.estimator: found k1, whose gradient in the loss"):
        KLPenalty(placement="loss", estimator="k1")
    with pytest.raises(UserError, match=r"algorithm\.kl\.kind"):
        KLPenalty(kind="k3").controller()  # type: ignore[arg-type]
