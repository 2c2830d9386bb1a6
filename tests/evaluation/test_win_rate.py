from __future__ import annotations

import random

import pytest

from rlhf_lightning.evaluation import wilson_interval, win_rate


@pytest.mark.parametrize(
    ("wins", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_the_values_newcombe_published(wins, n, low, high):
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    assert wilson_interval(wins / n, n) == pytest.approx((low, high), abs=6e-5)


def test_a_tie_is_half_a_win():
    assert win_rate([1.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]).rate == 0.5


def test_winning_everything_is_not_certainty():
    result = win_rate([1.0] * 50, [0.0] * 50)
    assert result.rate == 1.0
    assert result.high == 1.0
    assert result.low == pytest.approx(0.9287, abs=1e-4)


def test_swapping_the_sides_mirrors_the_interval():
    rng = random.Random(0)
    a, b = [rng.gauss(0.4, 1) for _ in range(40)], [rng.gauss(0, 1) for _ in range(40)]
    there, back = win_rate(a, b), win_rate(b, a)
    assert (there.rate, there.low, there.high) == pytest.approx((1 - back.rate, 1 - back.high, 1 - back.low))


def test_several_samples_of_a_prompt_are_one_trial():
    one = win_rate([1.0, 0.0], [0.5, 0.5])
    four = win_rate([1.0] * 4 + [0.0] * 4, [0.5] * 8, samples_per_prompt=4)
    assert four == one
    assert win_rate([1.0] * 4 + [0.0] * 4, [0.5] * 8).low > four.low


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = random.Random(1)
    covered = 0
    for _ in range(1000):
        n = 60
        result = win_rate([1.0 if rng.random() < 0.8 else 0.0 for _ in range(n)], [0.5] * n)
        covered += result.low <= 0.8 <= result.high
    assert 930 <= covered <= 975


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="found 2 and 1"):
        win_rate([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="multiple of 2"):
        win_rate([1.0], [1.0], samples_per_prompt=2)
    with pytest.raises(ValueError, match="at least one trial"):
        win_rate([], [])
