import pytest

from rlhf_lightning.algorithms import AdaptiveKLController, FixedKLController, KLPenalty, MultiplicativeKLController
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
    """A policy whose KL answers the coefficient as KL = 4 / coef, seen through 10 % noise."""
    controller = KLPenalty(kind=kind, coef=0.05, target=5.0, horizon=2_000).controller()  # type: ignore[arg-type]
    history = []
    for step in range(400):
        kl = 4.0 / controller.value
        history.append(kl)
        controller.update(kl * (1 + 0.1 * (-1) ** step), n_episodes=256)
    band = 0.1 if kind == "adaptive" else 0.5  # the multiplicative one promises its band, a factor of 1.5
    assert all(abs(kl - 5.0) <= band * 5.0 for kl in history[-50:])


@pytest.mark.parametrize("kind", ["adaptive", "multiplicative", "fixed"])
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
    with pytest.raises(UserError, match=r"algorithm\.kl\.estimator: k1 in the loss"):
        KLPenalty(placement="loss", estimator="k1")
    with pytest.raises(UserError, match=r"algorithm\.kl\.kind"):
        KLPenalty(kind="k3").controller()  # type: ignore[arg-type]
