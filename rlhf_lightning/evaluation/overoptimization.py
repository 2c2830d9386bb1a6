"""Over-optimisation of a reward: the trained reward keeps rising while true quality falls (Gao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance

_CHANCE = 0.01  # of the pairs so far; later ones spend it again: of runs of 10 to 300 flat validations, 2 to 6 % fall


@dataclass(frozen=True)
class Validation:
    """The mean scores of the responses to held-out prompts.

    Attributes:
        iteration: the iteration after which they were sampled, from 1.
        proxy: by the reward that is trained on.
        held_out: by a scorer that is not.
        error: the standard error of `held_out`.
    """

    iteration: int
    proxy: float
    held_out: float
    error: float

    @classmethod
    def of(cls, iteration: int, proxy: Sequence[float], held_out: Sequence[float]) -> Validation:
        """Return the means of the responses' scores.

        >>> Validation.of(3, [1.0, 2.0], [0.0, 1.0])
        Validation(iteration=3, proxy=1.5, held_out=0.5, error=0.5)
        """
        n = len(held_out)
        error = math.sqrt(variance(held_out) / n) if n > 1 else 0.0
        return cls(iteration, fmean(proxy), fmean(held_out), error)


@dataclass(frozen=True)
class Fall:
    """How far the held-out score has fallen from its best.

    Attributes:
        best: the validations of the best window.
        now: those of the last one.
        gained: what the best had gained since the first validation.
        fallen: what has been lost since.
        threshold: a fall above it is more than tolerated, and more than chance.
    """

    best: tuple[Validation, ...]
    now: tuple[Validation, ...]
    gained: float
    fallen: float
    threshold: float

    @property
    def is_real(self) -> bool:
        """Return whether the fall is more than tolerated, and more than chance."""
        return self.fallen > self.threshold

    @property
    def proxy_rose(self) -> bool:
        """Return whether the reward that is trained on is no lower than it was at the best."""
        return fmean(each.proxy for each in self.now) >= fmean(each.proxy for each in self.best)


def fall(course: Sequence[Validation], tolerance: float, window: int) -> Fall:
    """Return how far the held-out score is below its best, both averaged over one validation up to `window`.

    The best is the highest mean of this many consecutive validations. A fall is real where it is more than `tolerance`
    times what had been gained, and more than chance. Of the numbers of validations that are averaged, the one whose
    fall exceeds its threshold most counts: a few show a steep fall at once, many a small one.

    Chance is z standard errors of the difference, which count responses as independent. Whoever takes the best of many
    means, and looks after every validation, finds a fall of two standard errors in almost every long run that stays
    where it is. So z grows with the number of pairs that were compared so far (Bonferroni): in about one run in twenty
    chance alone is called a fall.

    Args:
        course: every validation so far, at least one.
        tolerance: share of the gain that may be lost.
        window: validations that are averaged, at most.
    """
    sizes = range(1, min(window, len(course)) + 1)
    counts = [len(course) - size + 1 for size in sizes]
    pairs = sum(count * (count - 1) // 2 for count in counts)
    z = NormalDist().inv_cdf(1 - _CHANCE / pairs) if pairs else 0.0
    return max((_fall(course, tolerance, size, z) for size in sizes), key=lambda each: each.fallen - each.threshold)


def _fall(course: Sequence[Validation], tolerance: float, size: int, z: float) -> Fall:
    windows = [tuple(course[end - size : end]) for end in range(size, len(course) + 1)]
    best, now = max(windows, key=_mean), windows[-1]
    gained, fallen = _mean(best) - course[0].held_out, _mean(best) - _mean(now)
    chance = z * math.sqrt(_error(best) ** 2 + _error(now) ** 2)
    return Fall(best, now, gained, fallen, max(tolerance * gained, chance))


def _mean(window: Sequence[Validation]) -> float:
    return fmean(each.held_out for each in window)


def _error(window: Sequence[Validation]) -> float:
    return math.sqrt(sum(each.error**2 for each in window)) / len(window)
