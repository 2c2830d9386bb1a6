"""Judgements as columns of pairwise votes, the input of agreement, aggregation and export."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.feedback.records import Answer, Judgement

FIRST, SECOND, TIE = 0, 1, 2  # an outcome: which of the two, as shown, is better
DEFAULT_STRENGTH = 1.0


@dataclass(frozen=True)
class Votes:
    """One row per pair that a judgement compares; a ranking of K compares K (K - 1) / 2 pairs.

    `first < second` are positions, in the order shown. `neither` counts as a tie here.
    """

    tasks: list[str]
    labelers: list[str]
    task: NDArray[np.int64]  # an index into tasks; the next ones likewise
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    labeler: NDArray[np.int64]
    outcome: NDArray[np.int64]
    strength: NDArray[np.float64]  # of a choice, or the distance in a ranking; 0 for a tie
    judgement: NDArray[np.int64]  # which rows come from one judgement
    repeat: NDArray[np.bool_]
    seconds: NDArray[np.float64]  # NaN if not measured

    def __len__(self) -> int:
        return len(self.task)

    def where(self, mask: NDArray[np.bool_]) -> Votes:
        """Return the rows that a mask selects; no copy is made if it selects all."""
        if mask.all():
            return self
        columns = ("task", "first", "second", "labeler", "outcome", "strength", "judgement", "repeat", "seconds")
        return Votes(self.tasks, self.labelers, *(getattr(self, name)[mask] for name in columns))

    def units(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return one row number per compared pair, in the order of tasks and positions, and the pair of each row."""
        key = (self.task * 4096 + self.first) * 4096 + self.second
        _, rows, unit = np.unique(key, return_index=True, return_inverse=True)
        return rows.astype(np.int64), unit.reshape(-1).astype(np.int64)


def read_votes(judgements: Iterable[Judgement]) -> Votes:
    """Return the votes of all judgements except skips."""
    tasks: dict[str, int] = {}
    labelers: dict[str, int] = {}
    facts, ranks, seconds = array("q"), array("d"), array("d")
    for number, judgement in enumerate(judgements):
        if judgement.answer.verdict == "skip":
            continue
        task = tasks.setdefault(judgement.task, len(tasks))
        labeler = labelers.setdefault(judgement.labeler, len(labelers))
        said = _as_ranks(judgement.answer)
        facts.extend((task, labeler, number, judgement.repeat, len(said)))
        ranks.extend(said)
        seconds.append(float("nan") if judgement.seconds is None else judgement.seconds)
    table = np.array(facts, dtype=np.int64).reshape(-1, 5)
    row, first, second, difference = _pairs(table[:, 4], np.array(ranks, dtype=np.float64))
    return Votes(
        list(tasks),
        list(labelers),
        table[row, 0],
        first,
        second,
        table[row, 1],
        np.select([difference < 0, difference > 0], [FIRST, SECOND], TIE),
        np.abs(difference),
        table[row, 2],
        table[row, 3].astype(bool),
        np.array(seconds, dtype=np.float64)[row],
    )


def _as_ranks(answer: Answer) -> tuple[float, ...]:
    """Return a pair's answer as two ranks that differ by its strength."""
    if answer.ranks is not None:
        return answer.ranks
    if answer.choice is None:
        return 1.0, 1.0
    strength = float(answer.strength or DEFAULT_STRENGTH)
    return (1.0, 1.0 + strength) if answer.choice == 0 else (1.0 + strength, 1.0)


def _pairs(
    sizes: NDArray[np.int64], ranks: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return all pairs of each judgement: its row, the two positions, and how much worse the first one ranks."""
    starts = np.cumsum(sizes) - sizes
    parts = []
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        first, second = np.triu_indices(int(size), 1)
        of_size = ranks[starts[rows][:, None] + np.arange(size)]
        count = len(first)
        difference = (of_size[:, first] - of_size[:, second]).reshape(-1)
        parts.append((np.repeat(rows, count), np.tile(first, len(rows)), np.tile(second, len(rows)), difference))
    if not parts:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing, np.zeros(0)
    row, first, second, difference = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(row, kind="stable")
    return row[order], first[order], second[order], difference[order]
