"""When a fall of the held-out score is real."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest

from rlhf_lightning.evaluation.diversity import repetition
from rlhf_lightning.evaluation.overoptimization import Validation, fall


def course(*held_out: float, proxy: float = 1.0, error: float = 0.0) -> list[Validation]:
    """The proxy rises by `proxy` per validation."""
    return [Validation(i + 1, proxy * i, value, error) for i, value in enumerate(held_out)]


def test_a_fall_is_measured_from_the_best_and_against_what_was_gained() -> None:
    found = fall(course(0.0, 1.0, 2.0, 1.9), tolerance=0.1, window=1)
    assert (found.gained, found.best[0].iteration, found.now[0].iteration) == (2.0, 3, 4)
    assert found.fallen == pytest.approx(0.1) and found.threshold == pytest.approx(0.2) and not found.is_real
    assert fall(course(0.0, 1.0, 2.0, 1.7), tolerance=0.1, window=1).is_real


def test_a_small_fall_is_seen_once_it_has_lasted_and_a_steep_one_at_once() -> None:
    """One validation says little (a fall of 0.18 with an error of 0.05 each); the mean of three is clear."""
    lasting = course(0.0, *[1.0] * 6, *[0.82] * 3, error=0.05)
    assert not fall(lasting, 0.05, window=1).is_real
    found = fall(lasting, 0.05, window=3)
    assert found.is_real and len(found.best) == len(found.now) == 3 and found.fallen == pytest.approx(0.18)
    assert not fall(lasting[:8], 0.05, window=3).is_real
    steep = fall(course(0.0, *[1.0] * 6, 0.7, error=0.05), 0.05, window=3)
    assert steep.is_real and len(steep.now) == 1 and steep.fallen == pytest.approx(0.3)


def test_what_chance_explains_is_no_fall() -> None:
    """Three validations form three pairs, which share the allowance for chance."""
    noisy, exact = course(0.0, 1.0, 0.7, error=0.1), course(0.0, 1.0, 0.7, error=0.05)
    threshold = NormalDist().inv_cdf(1 - 0.01 / 3) * math.sqrt(2) * 0.1
    assert fall(noisy, 0.05, 1).threshold == pytest.approx(threshold)
    assert not fall(noisy, 0.05, 1).is_real and fall(exact, 0.05, 1).is_real


def test_a_run_that_stays_where_it_is_rarely_falls() -> None:
    """About one in twenty of the runs with thirty chance validations; with two standard errors nearly all."""
    numbers = random.Random(0)
    runs = [course(*(numbers.gauss(0, 1) for _ in range(30)), error=1.0) for _ in range(100)]
    called = [any(fall(run[:n], 0.05, 3).is_real for n in range(2, 31)) for run in runs]
    assert sum(called) <= 10
    of_two_errors = [max(fall(run[:n], 0.05, 1).fallen for n in range(2, 31)) > 2 * math.sqrt(2) for run in runs]
    assert sum(of_two_errors) > 80


def test_nothing_falls_at_first_nor_while_it_rises() -> None:
    assert not fall(course(1.0), 0.05, 3).is_real
    assert not any(fall(course(*range(n)), 0.05, 3).is_real for n in range(1, 9))


def test_a_score_that_only_falls_is_a_fall_without_a_gain() -> None:
    found = fall(course(1.0, 0.5, 0.2), 0.05, 1)
    assert found.is_real and found.gained == 0.0


def test_it_knows_whether_the_proxy_rose_meanwhile() -> None:
    assert fall(course(0.0, 2.0, 1.0), 0.05, 1).proxy_rose
    assert not fall(course(0.0, 2.0, 1.0, proxy=-1.0), 0.05, 1).proxy_rose


def test_repetition_counts_within_a_response_only() -> None:
    once, twice = "a b c d e", "a b c d a b c d"
    assert repetition([once, once]) == 0.0
    assert repetition([once, twice]) == pytest.approx((0 + 1 / 5) / 2)
    assert repetition(["a b"]) == repetition([]) == 0.0
