"""When a fall of the held-out score is one."""

from __future__ import annotations

import math

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


def test_windows_are_averaged_so_that_one_lucky_validation_is_no_best() -> None:
    lucky = course(0.0, 1.0, 3.0, 1.0, 1.1, 1.2)
    assert fall(lucky, 0.05, window=1).is_real and not fall(lucky[:5], 0.05, window=4).is_real
    assert not fall(lucky[2:5], 0.05, window=3).is_real  # nothing to compare it with yet
    averaged = fall(course(0.0, 3.0, 0.0, 3.0, 0.0), 0.05, window=2)
    assert averaged.fallen == 0.0 and len(averaged.now) == 2


def test_what_chance_explains_is_no_fall() -> None:
    """Two standard errors of the difference of two means."""
    noisy, exact = course(0.0, 1.0, 0.8, error=0.1), course(0.0, 1.0, 0.8, error=0.05)
    assert fall(noisy, 0.05, 1).threshold == pytest.approx(2 * math.sqrt(2) * 0.1)
    assert not fall(noisy, 0.05, 1).is_real and fall(exact, 0.05, 1).is_real


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
