"""Judgements as columns of pairwise votes: what agreement, aggregation and export compute with."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.feedback.records import Answer, Judgement

FIRST, SECOND, TIE = 0, 1, 2  # an outcome: which of the two, as they are shown, is better
DEFAULT_STRENGTH = 1.0


@dataclass(frozen=True)
class Votes:
    """One row per pair that a judgement compares; a ranking of K compares K (K - 1) / 2 pairs.

    `first < second` are positions, in the order shown. `neither` of two is a tie here.
    """

    tasks: list[str]
    labelers: list[str]
    task: NDArray[np.int64]  # an index into tasks, likewise below
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    labeler: NDArray[np.int64]
    outcome: NDArray[np.int64]
    strength: NDArray[np.float64]  # of a choice, or the distance in a ranking; 0 of a tie
    judgement: NDArray[np.int64]  # which rows come from one judgement
    repeat: NDArray[np.bool_]
    seconds: NDArray[np.float64]  # NaN where nobody measured

    def __len__(self) -> int:
        return len(self.task)

    def where(self, mask: NDArray[np.bool_]) -> Votes:
        """Return the rows that a mask selects."""
        columns = ("task", "first", "second", "labeler", "outcome", "strength", "judgement", "repeat", "seconds")
        return Votes(self.tasks, self.labelers, *(getattr(self, name)[mask] for name in columns))

    def units(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return one row number per compared pair, in the order of tasks and positions, and the pair of each row."""
        key = (self.task * 4096 + self.first) * 4096 + self.second
        _, rows, unit = np.unique(key, return_index=True, return_inverse=True)
        return rows.astype(np.int64), unit.reshape(-1).astype(np.int64)


def read_votes(judgements: Iterable[Judgement]) -> Votes:
    """Return the votes of the judgements that say something: all but skips."""
    tasks: dict[str, int] = {}
    labelers: dict[str, int] = {}
    whole = [array("q") for _ in range(7)]
    strengths, seconds = array("d"), array("d")
    for number, judgement in enumerate(judgements):
        if judgement.answer.verdict == "skip":
            continue
        task = tasks.setdefault(judgement.task, len(tasks))
        labeler = labelers.setdefault(judgement.labeler, len(labelers))
        taken = float("nan") if judgement.seconds is None else judgement.seconds
        for first, second, outcome, strength in _pairs(judgement.answer):
            row = (task, first, second, labeler, outcome, number, judgement.repeat)
            for column, value in zip(whole, row, strict=True):
                column.append(value)
            strengths.append(strength)
            seconds.append(taken)
    task_, first_, second_, labeler_, outcome_, judgement_, repeat_ = (
        np.array(column, dtype=np.int64) for column in whole
    )
    return Votes(
        list(tasks),
        list(labelers),
        task_,
        first_,
        second_,
        labeler_,
        outcome_,
        np.array(strengths, dtype=np.float64),
        judgement_,
        repeat_.astype(bool),
        np.array(seconds, dtype=np.float64),
    )


def _pairs(answer: Answer) -> list[tuple[int, int, int, float]]:
    if answer.verdict == "choice":
        assert answer.choice is not None
        return [(0, 1, answer.choice, float(answer.strength or DEFAULT_STRENGTH))]
    if answer.ranks is None:
        return [(0, 1, TIE, 0.0)]
    return [
        (i, j, TIE if a == b else FIRST if a < b else SECOND, float(abs(a - b)))
        for (i, a), (j, b) in combinations(enumerate(answer.ranks), 2)
    ]
