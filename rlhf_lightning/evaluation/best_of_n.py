"""Proxy and held-out score by distance from the start, for best-of-n and for training (Gao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import best_of_n_kl

Scores = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Point:
    """Mean scores of a policy at a distance from the start: KL in nats per response."""

    kl: float
    proxy: float
    held_out: float


@dataclass(frozen=True)
class Fit:
    """R(d) = d (alpha - beta d) for best-of-n, or d (alpha - beta log d) for training, with d = sqrt(KL)."""

    alpha: float
    beta: float
    logarithmic: bool

    def __call__(self, d: float) -> float:
        """Return what a policy at this distance gains over the start."""
        return d * (self.alpha - self.beta * self.bend(d))

    def bend(self, d: float) -> float:
        """Return the factor of beta."""
        return math.log(d) if self.logarithmic else d


@dataclass(frozen=True)
class Curve:
    """One way of moving away from the start, with fits of what it gains."""

    name: str
    points: tuple[Point, ...]
    proxy: Fit
    held_out: Fit


@dataclass(frozen=True)
class Curves:
    """Best-of-n and training; both begin at the same policy, whose scores are `start`."""

    start: Point
    curves: tuple[Curve, ...]

    def flat(self) -> dict[str, float]:
        """Return points and fits as one flat object for summary.json."""
        found: dict[str, float] = {}
        for curve in self.curves:
            for score in ("proxy", "held_out"):
                fit: Fit = getattr(curve, score)
                found |= {f"fit.{curve.name}.{score}.alpha": fit.alpha, f"fit.{curve.name}.{score}.beta": fit.beta}
        return found


def best_of_n_points(proxy: Scores, held_out: Scores, ns: Iterable[int]) -> list[Point]:
    """Return the mean scores of the answer with the highest proxy score among n, for each n, and the KL of that choice.

    No new samples are needed: over all subsets of n of the N answers to a prompt, the answer of rank k by proxy is the
    best with probability C(k - 1, n - 1) / C(N, n), ranks ascending.

    Args:
        proxy, held_out: [prompts, N], scores of N answers of the start policy to each prompt.
        ns: values of n, each from 1 to N.

    Raises:
        ValueError: an n that is not from 1 to N.

    Source: Nakano et al. 2021, "WebGPT", appendix I. KL: log n - (n - 1) / n, an upper bound (see `best_of_n_kl`).

    >>> best_of_n_points([[0.0, 1.0]], [[5.0, 7.0]], [1, 2])[1]
    Point(kl=0.1931471805599453, proxy=1.0, held_out=7.0)
    """
    chosen, others = np.asarray(proxy, dtype=float), np.asarray(held_out, dtype=float)
    order = np.argsort(chosen, axis=1, kind="stable")
    ranked = [np.take_along_axis(scores, order, axis=1).mean(axis=0) for scores in (chosen, others)]
    size, points = chosen.shape[1], []
    for n in ns:
        if not 1 <= n <= size:
            raise ValueError(f"the best of {n} among {size} answers; n must be from 1 to {size}")
        weights = np.array([math.comb(k, n - 1) / math.comb(size, n) for k in range(size)])
        points.append(Point(best_of_n_kl(n), *(float(weights @ scores) for scores in ranked)))
    return points


def best_places(scores: Sequence[float], n: int) -> list[int]:
    """Return the place of the highest of each n neighbouring scores; of equal ones, the first.

    Raises:
        ValueError: the scores are not a multiple of n.

    >>> best_places([1.0, 3.0, 3.0, 0.0, -2.0, -1.0], 3)
    [1, 3]
    """
    if len(scores) % n:
        raise ValueError(f"{len(scores)} scores do not divide into groups of {n}")
    return [max(range(start, start + n), key=scores.__getitem__) for start in range(0, len(scores), n)]


def bound_line(n: int) -> str:
    """Return a line that says how far best-of-n is at most from the policy that it samples.

    >>> bound_line(4)
    'best of 4: at most 0.636 nats per response from the policy that it samples (KL <= log n - (n - 1)/n)'
    """
    return (
        f"best of {n}: at most {best_of_n_kl(n):.3f} nats per response from the policy that it samples "
        "(KL <= log n - (n - 1)/n)"
    )


def powers_of_two(largest: int) -> list[int]:
    """Return 1, 2, 4, ... up to `largest`, which is always included.

    >>> powers_of_two(12)
    [1, 2, 4, 8, 12]
    """
    return [*(2**i for i in range(largest.bit_length()) if 2**i < largest), largest]


def training_points(rows: Iterable[Mapping[str, Any]], source: str) -> list[Point]:
    """Return the results of the validations of an on-policy run with held-out scorers.

    Args:
        rows: the rows of its metrics.jsonl.
        source: named in the error.

    Raises:
        UserError: fewer than three validations with `val/kl`, `val/scores` and `val/held_out`.
    """
    names = ("val/kl", "val/scores", "val/held_out")
    found = [Point(*(float(row[name]) for name in names)) for row in rows if all(row.get(n) is not None for n in names)]
    if len(found) < 3:
        raise UserError(
            f"course: {source} has {len(found)} validations with {', '.join(names)}; give a run that was trained with "
            "callbacks=overoptimization for at least three"
        )
    return found


def fitted(name: str, start: Point, points: Sequence[Point], logarithmic: bool) -> Curve:
    """Return a curve with least-squares fits of the gains over the start; points at distance 0 are ignored.

    >>> line = [Point(d * d, d * (2 - d), d) for d in (0.5, 1.0, 2.0)]
    >>> fit = fitted("best-of-n", Point(0.0, 0.0, 0.0), line, logarithmic=False).proxy
    >>> round(fit.alpha, 6), round(fit.beta, 6)
    (2.0, 1.0)
    """
    far = [point for point in points if point.kl > 0]
    distance = np.sqrt([point.kl for point in far])
    bend = np.log(distance) if logarithmic else distance
    columns = np.stack([distance, -distance * bend], axis=1)
    gained: Callable[[str], NDArray[np.float64]] = lambda score: np.array(  # noqa: E731
        [getattr(point, score) - getattr(start, score) for point in far]
    )
    found = [np.linalg.lstsq(columns, gained(score))[0].tolist() for score in ("proxy", "held_out")]
    proxy, held_out = (Fit(alpha, beta, logarithmic) for alpha, beta in found)
    return Curve(name, tuple(points), proxy, held_out)
