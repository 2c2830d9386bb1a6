"""Whether a policy is paid ever more for what is worth ever less: over-optimisation of a reward (Gao et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(frozen=True)
class Validation:
    """The mean scores of the responses to held-out prompts.

    Attributes:
        iteration: after which they were sampled, from 1.
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
        threshold: what it takes to be more than tolerated, and more than chance.
    """

    best: tuple[Validation, ...]
    now: tuple[Validation, ...]
    gained: float
    fallen: float
    threshold: float

    @property
    def is_real(self) -> bool:
        """Whether it is more than tolerated, and more than chance."""
        return self.fallen > self.threshold

    @property
    def proxy_rose(self) -> bool:
        """Whether the reward that is trained on is no lower than it was at the best."""
        return fmean(each.proxy for each in self.now) >= fmean(each.proxy for each in self.best)


def fall(course: Sequence[Validation], tolerance: float, window: int) -> Fall:
    """Return how far the held-out score is below its best, both averaged over a window of validations.

    The best is the highest mean of `window` validations in a row; of fewer there is nothing to compare. A fall is
    real where it is more than `tolerance` times what had been gained, and more than two standard errors, which count
    responses as independent.

    Args:
        course: every validation so far, at least one.
        tolerance: share of the gain.
        window: validations that are averaged.
    """
    ends = range(min(window, len(course)), len(course) + 1)
    windows = [tuple(course[max(0, end - window) : end]) for end in ends]
    best, now = max(windows, key=_mean), windows[-1]
    gained, fallen = _mean(best) - course[0].held_out, _mean(best) - _mean(now)
    chance = 2 * math.sqrt(_error(best) ** 2 + _error(now) ** 2)
    return Fall(best, now, gained, fallen, max(tolerance * gained, chance))


def _mean(window: Sequence[Validation]) -> float:
    return fmean(each.held_out for each in window)


def _error(window: Sequence[Validation]) -> float:
    return math.sqrt(sum(each.error**2 for each in window)) / len(window)
