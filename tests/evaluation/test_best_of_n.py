"""Best-of-n by hand and by sampling; the fits of Gao et al. (2023) recover the generating parameters."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation.best_of_n import (
    Curves,
    Fit,
    Point,
    best_of_n_points,
    fitted,
    powers_of_two,
    training_points,
)


def test_the_estimate_is_that_of_drawing_subsets() -> None:
    generator = np.random.default_rng(0)
    proxy = generator.normal(size=(3, 12))
    held_out = proxy + generator.normal(size=(3, 12))
    (point,) = best_of_n_points(proxy.tolist(), held_out.tolist(), [4])
    drawn = []
    for _ in range(4000):
        for row in range(3):
            subset = generator.choice(12, size=4, replace=False)
            drawn.append(held_out[row, subset[np.argmax(proxy[row, subset])]])
    assert point.held_out == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / math.sqrt(len(drawn)))
    assert point.kl == pytest.approx(math.log(4) - 3 / 4)


def test_one_of_n_is_the_mean_and_all_of_n_the_best() -> None:
    first, last = best_of_n_points([[1.0, 3.0, 2.0]], [[5.0, 6.0, 10.0]], [1, 3])
    assert first == Point(0.0, 2.0, 7.0) and (last.proxy, last.held_out) == (3.0, 6.0)
    with pytest.raises(ValueError, match="the best of 4 among 3 answers"):
        best_of_n_points([[1.0, 3.0, 2.0]], [[5.0, 6.0, 10.0]], [4])
    assert powers_of_two(16) == [1, 2, 4, 8, 16] and powers_of_two(1) == [1]


@pytest.mark.parametrize("logarithmic", [False, True])
def test_a_fit_recovers_its_parameters(logarithmic: bool) -> None:
    start, truth = Point(0.0, 1.0, -2.0), Fit(1.5, 0.4, logarithmic)
    gains = {d: truth(d) for d in (0.3, 0.7, 1.1, 2.0, 3.0)}
    points = [Point(d * d, 1.0 + gain, -2.0 + 2 * gain) for d, gain in gains.items()]
    curve = fitted("x", start, [start, *points], logarithmic)
    assert (curve.proxy.alpha, curve.proxy.beta) == pytest.approx((1.5, 0.4))
    assert (curve.held_out.alpha, curve.held_out.beta) == pytest.approx((3.0, 0.8))
    assert Curves(start, (curve,)).flat()["fit.x.proxy.alpha"] == pytest.approx(1.5)


def test_a_course_needs_validations_with_held_out_scores() -> None:
    row = {"val/kl": 1.0, "val/scores": 2.0, "val/held_out": 3.0}
    assert training_points([row, {"train/loss": 1.0}, row, row], "m")[0] == Point(1.0, 2.0, 3.0)
    with pytest.raises(UserError, match=r"course: m has 2 validations .*callbacks=overoptimization"):
        training_points([row, row, {"val/kl": 1.0}], "m")
