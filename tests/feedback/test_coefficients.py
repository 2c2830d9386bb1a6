"""Coefficients compared with published worked examples and independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from rlhf_lightning.feedback.coefficients import (
    alpha_interval,
    alpha_of_counts,
    cohens_kappa,
    krippendorff_alpha,
    share_interval,
    wilson,
)


def units(*observers):
    """Return rows of observers, with a dot where one did not judge."""
    return [[int(c) if c.isdigit() else c for c in unit if c != "."] for unit in zip(*observers, strict=True)]


# K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), sections A, B, and C to E.
MEG_AND_OWEN = units("0100000010", "1110010000")
BEN_AND_GERRY = units("aabbdcccedda", "babbbcccedda"[:11] + "d")
FOUR_OBSERVERS = units("123321412...", "1233224125.3", ".33323422511"[:11] + ".", "12332441251.")


@pytest.mark.parametrize(
    ("data", "level", "published"),
    [
        (MEG_AND_OWEN, "nominal", 0.095),
        (FOUR_OBSERVERS, "nominal", 0.743),
        (FOUR_OBSERVERS, "ordinal", 0.815),
        (FOUR_OBSERVERS, "interval", 0.849),
    ],
)
def test_alpha_equals_krippendorffs_worked_examples(data, level, published):
    assert round(krippendorff_alpha(data, level), 3) == published


def test_alpha_equals_krippendorffs_example_of_five_categories():
    ben, gerry = "aabbdcccedda", "babbbccceddd"
    assert round(krippendorff_alpha(units(ben, gerry)), 3) == 0.692


def test_alpha_equals_its_definition_by_loops():
    """Observed disagreement within units, relative to that of all values paired at random."""
    rng = np.random.default_rng(0)
    data = [list(rng.integers(0, 3, size=rng.integers(0, 5))) for _ in range(30)]
    pairable = [unit for unit in data if len(unit) > 1]
    every = [value for unit in pairable for value in unit]
    observed = sum(
        (a - b) ** 2 / (len(unit) - 1)
        for unit in pairable
        for i, a in enumerate(unit)
        for b in unit[:i] + unit[i + 1 :]
    ) / len(every)
    expected = sum((a - b) ** 2 for i, a in enumerate(every) for b in every[:i] + every[i + 1 :])
    expected /= len(every) * (len(every) - 1)
    assert krippendorff_alpha(data, "interval") == pytest.approx(1 - observed / expected, rel=1e-12)


def test_alpha_is_nan_where_nothing_varies_and_1_where_all_agree():
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))
    assert math.isnan(krippendorff_alpha([[1], [2]]))
    assert krippendorff_alpha([[1, 1], [2, 2, 2]]) == 1


def test_the_bootstrap_is_that_of_units_drawn_one_by_one():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 300)
    counts = np.zeros((300, 2))
    for _ in range(3):
        counts[np.arange(300), np.where(rng.random(300) < 0.8, truth, 1 - truth)] += 1
    interval = alpha_interval(counts, draws=2000, seed=0)
    draws = [alpha_of_counts(counts[rng.integers(0, 300, 300)], np.ones(300)) for _ in range(2000)]
    # Ends of an interval from 2,000 draws vary by about 0.05 standard deviations of the draws; 5 of those, twice.
    tolerance = 0.36 * float(np.std(draws))
    assert interval.value == pytest.approx(alpha_of_counts(counts, np.ones(300)))
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=tolerance)
    assert interval.count == 300


def test_kappa_equals_the_worked_example_of_fleiss():
    """Fleiss, Levin and Paik, "Statistical Methods for Rates and Proportions" (2003), table 18.1: 0.676."""
    assert round(cohens_kappa([[75, 1, 4], [5, 4, 1], [0, 0, 10]]), 3) == 0.676


def test_kappa_equals_the_worked_example_of_cohen():
    """J. Cohen, Psychological Bulletin 70 (1968), table 1: 200 cases, unweighted kappa 0.492."""
    assert round(cohens_kappa([[88, 14, 18], [10, 40, 10], [2, 6, 12]]), 3) == 0.492


def test_kappa_equals_that_of_scikit_learn():
    rng = np.random.default_rng(2)
    one = rng.integers(0, 3, 200)
    other = np.where(rng.random(200) < 0.6, one, rng.integers(0, 3, 200))
    table = np.zeros((3, 3))
    np.add.at(table, (one, other), 1)
    assert cohens_kappa(table) == pytest.approx(cohen_kappa_score(one, other), rel=1e-12)
    assert math.isnan(cohens_kappa([[5, 0], [0, 0]]))
    assert math.isnan(cohens_kappa([[0, 0], [0, 0]]))


def test_wilson_equals_the_published_example():
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hits, count), ends in published.items():
        assert tuple(round(end, 4) for end in wilson(hits / count, count)) == ends


def test_a_share_of_clusters_is_less_certain_than_of_single_trials():
    rng = np.random.default_rng(3)
    hits = rng.integers(0, 2, 100).astype(float)
    single = share_interval(hits, np.ones(100))
    assert (single.low, single.high) == pytest.approx(wilson(float(hits.mean()), 100))
    clustered = share_interval(hits * 6, np.full(100, 6.0))  # all six of a cluster hit, or none
    assert (clustered.low, clustered.high) == pytest.approx((single.low, single.high))
    assert clustered.count == 600
    assert share_interval(np.full(50, 6.0), np.full(50, 6.0)).low == pytest.approx(wilson(1.0, 50)[0])
    assert math.isnan(share_interval(np.zeros(0), np.zeros(0)).value)
