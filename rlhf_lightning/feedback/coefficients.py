"""Coefficients of agreement and intervals, as pure functions of counts.

Krippendorff's alpha follows "Computing Krippendorff's Alpha-Reliability" (Krippendorff 2011): with o_ck how often
values c and k occur together in a unit (each pair of a unit with m values has weight 1 / (m - 1)), n_c its row sums, n
its total, and d_ck the squared distance of two values,

    alpha = 1 - (n - 1) sum_ck o_ck d_ck / sum_ck n_c n_k d_ck

Cohen's kappa (Cohen 1960): kappa = (p_o - p_e) / (1 - p_e), with p_e from the two raters' own marginals.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = ("nominal", "ordinal", "interval")
Z95 = 1.959963984540054
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval and the number of observations. NaN if there are none."""

    value: float
    low: float
    high: float
    count: int

    def as_dict(self) -> dict[str, float | int | None]:
        """Return the interval for JSON, with NaN as null."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{name: None if math.isnan(x) else x for name, x in numbers.items()}, "count": self.count}


def cohens_kappa(table: Any) -> float:
    """Return Cohen's kappa of a square table of counts: rows are one rater's categories, columns the other's.

    NaN if chance alone would always agree, for example if both use a single category.

    >>> round(cohens_kappa([[20, 5], [10, 15]]), 3)
    0.4
    """
    counts = np.asarray(table, dtype=np.float64)
    total = counts.sum()
    if total == 0:
        return math.nan
    by_chance = float(counts.sum(0) @ counts.sum(1) / total**2)
    observed = float(np.trace(counts) / total)
    return math.nan if math.isclose(by_chance, 1.0) else (observed - by_chance) / (1 - by_chance)


def krippendorff_alpha(units: Sequence[Sequence[Hashable]], level: str = "nominal") -> float:
    """Return Krippendorff's alpha of units, each given as the values of the raters who rated it.

    Args:
        units: one sequence of values per unit; a unit with fewer than two values does not count.
        level: level of measurement: `nominal`, `ordinal` or `interval` (numbers).

    >>> round(krippendorff_alpha(["ab", "aa", "bb", "bb"]), 3)
    0.533
    """
    values = sorted({value for unit in units for value in unit}, key=lambda value: (str(type(value)), value))
    column = {value: i for i, value in enumerate(values)}
    counts = np.zeros((len(units), len(values)))
    for row, unit in enumerate(units):
        for value in unit:
            counts[row, column[value]] += 1
    return alpha_of_counts(counts, np.ones(len(units)), level, values)


def alpha_of_counts(
    counts: Counts, weights: Counts, level: str = "nominal", values: Sequence[Any] | None = None
) -> float:
    """Return alpha of counts `[units, values]`, each unit counted as often as its weight says.

    Args:
        counts: how often each value was given to each unit.
        weights: `[units]`, how often each unit counts.
        level: level of measurement.
        values: the numbers of an interval scale; None: 0, 1, 2, ...
    """
    size = counts.sum(1)
    pairable = size >= 2
    counts, scale = counts[pairable], (weights[pairable] / (size[pairable] - 1))
    met = (counts * scale[:, None]).T @ counts - np.diag(scale @ counts)
    marginals = met.sum(1)
    distances = _distances(marginals, level, values)
    expected = float(marginals @ distances @ marginals)
    if expected == 0:
        return math.nan  # all values are the same
    return 1 - (float(marginals.sum()) - 1) * float((met * distances).sum()) / expected


def alpha_interval(counts: NDArray[Any], draws: int = 1000, seed: int = 0, level: str = "nominal") -> Interval:
    """Return alpha with a bootstrap interval over units, the rows of counts `[units, values]`.

    Units with the same counts are drawn together, so the cost does not grow with the number of units.
    """
    pairable = counts[counts.sum(1) >= 2]
    if not len(pairable):
        return Interval(math.nan, math.nan, math.nan, 0)
    patterns, frequency = np.unique(pairable, axis=0, return_counts=True)
    value = alpha_of_counts(patterns, frequency.astype(np.float64), level)
    drawn = [alpha_of_counts(patterns, weights, level) for weights in resampled(frequency, draws, seed)]
    low, high = percentiles(drawn)
    return Interval(value, low, high, len(pairable))


def resampled(frequency: NDArray[Any], draws: int, seed: int) -> Counts:
    """Return `[draws, patterns]`: how often each pattern is drawn when all units are drawn with replacement."""
    total = int(frequency.sum())
    return np.random.default_rng(seed).multinomial(total, frequency / total, size=draws).astype(np.float64)


def percentiles(drawn: Sequence[float] | Counts) -> tuple[float, float]:
    """Return the 2.5th and the 97.5th percentile of the draws that are not NaN."""
    known = [x for x in drawn if not math.isnan(x)]
    if not known:
        return math.nan, math.nan
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def share_interval(hits: NDArray[Any], trials: NDArray[Any], z: float = Z95) -> Interval:
    """Return a share with its Wilson interval for trials in clusters, such as the pairs of one ranking.

    The number of trials is divided by the design effect: the variance of the share between clusters over that of as
    many independent trials. The result is at most the number of trials and, if all or none hit, the number of clusters.

    Args:
        hits: `[clusters]`, number of hits per cluster.
        trials: `[clusters]`, number of trials per cluster.
        z: half-width in standard errors; 1.96 for 95 %.
    """
    total = float(trials.sum())
    if total == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    share = float(hits.sum()) / total
    variance = float(((hits - share * trials) ** 2).sum()) / total**2
    size = float((trials > 0).sum()) if variance == 0 else min(total, share * (1 - share) / variance)
    low, high = wilson(share, size, z)
    return Interval(share, low, high, int(total))


def wilson(share: float, count: float, z: float = Z95) -> tuple[float, float]:
    """Return the ends of Wilson's interval of a share.

    >>> [round(end, 3) for end in wilson(0.5, 100)]
    [0.404, 0.596]
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _distances(marginals: Counts, level: str, values: Sequence[Any] | None) -> Counts:
    """Return the squared distances between all pairs of values."""
    count = len(marginals)
    if level == "nominal":
        return 1.0 - np.eye(count)
    if level == "interval":
        numbers = np.arange(count, dtype=np.float64) if values is None else np.array(values, dtype=np.float64)
        return (numbers[:, None] - numbers[None, :]) ** 2
    if level == "ordinal":
        middle = np.cumsum(marginals) - marginals / 2
        return (middle[:, None] - middle[None, :]) ** 2
    raise ValueError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")
