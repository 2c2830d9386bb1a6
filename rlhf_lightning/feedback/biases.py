"""Biases (position, length, speed) and whether check tasks were answered correctly.

All votes of one judgement form a cluster: the pairs of a ranking are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.feedback.coefficients import Interval, share_interval
from rlhf_lightning.feedback.records import Task
from rlhf_lightning.feedback.votes import FIRST, SECOND, TIE, Votes

Mask = NDArray[np.bool_]
FAST = 0.25  # share of everybody's median time


@dataclass(frozen=True)
class Tally:
    """How many votes of each judgement could hit, and how many did."""

    hits: NDArray[np.int64]
    trials: NDArray[np.int64]

    def share(self, mask: Mask, z: float) -> Interval:
        """Return the share of hits among the judgements that a mask selects."""
        return share_interval(self.hits[mask], self.trials[mask], z)


@dataclass(frozen=True)
class Tallies:
    """One entry per judgement.

    Args:
        labeler: who judged.
        repeat: whether the task was asked again.
        seconds: the time taken; NaN if not measured.
        checks: votes on the known best answer of a check task; a hit is a correct one.
        first_position: decided votes; a hit chooses the answer shown first: 0.5 without bias, as the order is random.
        longer: decided votes on answers of different lengths; a hit chooses the longer one, which may well be the
            better one: compare the share with other labelers'.
    """

    labeler: NDArray[np.int64]
    repeat: Mask
    seconds: NDArray[np.float64]
    checks: Tally
    first_position: Tally
    longer: Tally

    @classmethod
    def of(cls, votes: Votes, tasks: Iterable[Task]) -> Tallies:
        """Return the tallies of votes; the lengths of answers are in words."""
        words, best = _facts(votes, tasks)
        first, second = words[votes.task, votes.first], words[votes.task, votes.second]
        longer = np.select([first > second, second > first], [FIRST, SECOND], TIE)
        known = best[votes.task]
        right = np.select([known == votes.first, known == votes.second], [FIRST, SECOND], -1)
        decided = votes.outcome != TIE
        rows, cluster = np.unique(votes.judgement, return_index=True, return_inverse=True)[1:]

        def tally(asked: Mask, outcome: int | NDArray[np.int64]) -> Tally:
            hit = asked & (votes.outcome == outcome)
            return Tally(*(np.bincount(cluster[each], minlength=len(rows)) for each in (hit, asked)))

        return cls(
            votes.labeler[rows],
            votes.repeat[rows],
            votes.seconds[rows],
            tally(right >= 0, right),
            tally(decided, FIRST),
            tally(decided & (longer != TIE), longer),
        )

    def median_seconds(self, mask: Mask) -> Interval:
        """Return the median time of the judgements that a mask selects, with the interval of a sign test."""
        seconds = np.sort(self.seconds[mask & ~np.isnan(self.seconds)])
        count = len(seconds)
        if not count:
            return Interval(math.nan, math.nan, math.nan, 0)
        half = 1.96 * math.sqrt(count) / 2
        low, high = max(0, math.floor(count / 2 - half)), min(count - 1, math.ceil(count / 2 + half))
        return Interval(float(np.median(seconds)), float(seconds[low]), float(seconds[high]), count)

    def fast(self, mask: Mask, z: float) -> Interval:
        """Return the share of the selected judgements that took less than a quarter of everybody's median time."""
        known = ~np.isnan(self.seconds)
        mine = self.seconds[mask & known]
        if not len(mine):
            return share_interval(np.zeros(0), np.zeros(0), z)
        usual = float(np.median(self.seconds[known & ~self.repeat]))
        return share_interval((mine < FAST * usual).astype(np.int64), np.ones(len(mine)), z)


def _facts(votes: Votes, tasks: Iterable[Task]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return, by task, the words of each response and the position of the known best one (-1 if unknown)."""
    number = {task: i for i, task in enumerate(votes.tasks)}
    width = int(votes.second.max(initial=0)) + 1
    words = np.zeros((len(number), width), dtype=np.int64)
    best = np.full(len(number), -1)
    for task in tasks:
        i = number.get(task.id)
        if i is not None:
            lengths = [len(response.text.split()) for response in task.responses[:width]]
            words[i, : len(lengths)] = lengths
            best[i] = -1 if task.check is None else task.check
    return words, best
