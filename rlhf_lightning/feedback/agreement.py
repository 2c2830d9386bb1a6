"""Agreement between labelers, with themselves and with the known answers, and labelers worth a look.

Everything is computed on compared pairs: a ranking of K compares K (K - 1) / 2. The categories are the first response
as shown, the second, and a tie (`neither` counts as a tie).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.feedback.biases import Tallies
from rlhf_lightning.feedback.coefficients import (
    Interval,
    alpha_interval,
    cohens_kappa,
    percentiles,
    resampled,
    share_interval,
)
from rlhf_lightning.feedback.records import Judgement, Task
from rlhf_lightning.feedback.votes import Votes, read_votes

CATEGORIES = 3
LOOK = 3.0  # standard errors: about one labeler in 370 is flagged by chance for each reason
CHECKS_RIGHT = 0.8  # share of the check tasks that a labeler should answer correctly
SAME_AGAIN = 0.7  # share of the answers that a labeler should repeat


@dataclass(frozen=True)
class LabelerReport:
    """What is known about one labeler; each share with its interval."""

    name: str
    kind: str
    answers: int
    with_others: Interval
    with_self: Interval
    checks: Interval
    first_position: Interval
    longer: Interval
    others_longer: Interval
    seconds: Interval
    fast: Interval
    look: tuple[str, ...]


@dataclass(frozen=True)
class AgreementReport:
    """The agreement of all labelers.

    Args:
        raw: share of pairs of votes on the same comparison that agree.
        alpha: Krippendorff's alpha, nominal.
        kappa: (labeler, labeler) -> Cohen's kappa, and the number of comparisons.
        between_kinds: pair of kinds, such as `model-person` -> share of pairs of votes that agree.
        labelers: one report each.
    """

    raw: Interval
    alpha: Interval
    kappa: Mapping[tuple[str, str], tuple[float, int]]
    between_kinds: Mapping[str, Interval]
    labelers: tuple[LabelerReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "raw": self.raw.as_dict(),
            "alpha": self.alpha.as_dict(),
            "kappa": [
                {"labelers": list(names), "value": None if math.isnan(value) else value, "count": count}
                for names, (value, count) in self.kappa.items()
            ],
            "between_kinds": {name: interval.as_dict() for name, interval in self.between_kinds.items()},
            "labelers": [
                {
                    name: value.as_dict() if isinstance(value := getattr(report, name), Interval) else value
                    for name in asdict(report)
                }
                for report in self.labelers
            ],
        }


def agreement_report(
    tasks: Iterable[Task],
    judgements: Iterable[Judgement],
    kinds: Mapping[str, str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> AgreementReport:
    """Return the agreement of labelers.

    Args:
        tasks: at least those that were judged; iterated once.
        judgements: the valid ones (`FeedbackStore.judgements`).
        kinds: labeler -> person, model or simulated; default: person.
        draws: number of bootstrap draws over comparisons.
        seed: seed of the bootstrap.
    """
    votes = read_votes(judgements)
    tallies = Tallies.of(votes, tasks)
    first = votes.where(~votes.repeat)
    pairs = _PairsOfVotes.of(first)
    counts = np.zeros((0, CATEGORIES))
    if len(first):
        rows, unit = first.units()
        cells = np.bincount(unit * CATEGORIES + first.outcome, minlength=len(rows) * CATEGORIES)
        counts = cells.reshape(-1, CATEGORIES).astype(np.float64)
    of_kind = {name: (kinds or {}).get(name, "person") for name in votes.labelers}
    reports = tuple(_labeler(votes, tallies, pairs, i, of_kind) for i in range(len(votes.labelers)))
    return AgreementReport(
        _raw(counts, draws, seed),
        alpha_interval(counts, draws, seed),
        pairs.kappas(votes.labelers),
        pairs.between(of_kind, votes.labelers),
        reports,
    )


@dataclass(frozen=True)
class _PairsOfVotes:
    """All pairs of votes by different labelers on the same comparison."""

    one: NDArray[np.int64]  # the labeler with the smaller number
    other: NDArray[np.int64]
    said: NDArray[np.int64]  # the first labeler's vote
    replied: NDArray[np.int64]

    @classmethod
    def of(cls, votes: Votes) -> _PairsOfVotes:
        if not len(votes):
            return cls(*(np.zeros(0, dtype=np.int64) for _ in range(4)))
        unit = votes.units()[1]
        order = np.lexsort((votes.labeler, unit))
        unit, labeler, outcome = unit[order], votes.labeler[order], votes.outcome[order]
        found: list[tuple[NDArray[np.int64], ...]] = []
        for distance in range(1, int(np.bincount(unit).max())):
            same = np.flatnonzero(unit[distance:] == unit[:-distance])
            later = same + distance
            found.append((labeler[same], labeler[later], outcome[same], outcome[later]))
        columns = zip(*found, strict=True) if found else ((np.zeros(0, dtype=np.int64),),) * 4
        return cls(*(np.concatenate(column) for column in columns))

    @property
    def agrees(self) -> NDArray[np.float64]:
        return (self.said == self.replied).astype(np.float64)

    def kappas(self, names: list[str]) -> dict[tuple[str, str], tuple[float, int]]:
        size = CATEGORIES * CATEGORIES
        cell = ((self.one * len(names) + self.other) * CATEGORIES + self.said) * CATEGORIES + self.replied
        tables = np.bincount(cell, minlength=len(names) ** 2 * size).reshape(-1, CATEGORIES, CATEGORIES)
        return {
            (names[i // len(names)], names[i % len(names)]): (cohens_kappa(tables[i]), int(tables[i].sum()))
            for i in np.flatnonzero(tables.sum((1, 2)))
        }

    def between(self, kinds: Mapping[str, str], names: list[str]) -> dict[str, Interval]:
        labels = ["-".join(sorted((kinds[a], kinds[b]))) for a in names for b in names]
        which = self.one * len(names) + self.other
        number = {label: i for i, label in enumerate(sorted(set(labels)))}
        kind = np.array([number[label] for label in labels], dtype=np.int64)[which] if labels else which
        return {
            label: share_interval(self.agrees[kind == i], np.ones(int((kind == i).sum())))
            for label, i in number.items()
            if (kind == i).any()
        }


def _raw(counts: NDArray[np.float64], draws: int, seed: int) -> Interval:
    """Return the share of pairs of votes that agree, with the same bootstrap as alpha."""
    pairable = counts[counts.sum(1) >= 2]
    if not len(pairable):
        return Interval(math.nan, math.nan, math.nan, 0)
    patterns, frequency = np.unique(pairable, axis=0, return_counts=True)
    same = (patterns * (patterns - 1)).sum(1) / 2
    size = patterns.sum(1)
    every = size * (size - 1) / 2
    weights = resampled(frequency, draws, seed)
    low, high = percentiles((weights @ same) / (weights @ every))
    return Interval(float(frequency @ same / (frequency @ every)), low, high, len(pairable))


def _labeler(
    votes: Votes, tallies: Tallies, pairs: _PairsOfVotes, number: int, kinds: Mapping[str, str]
) -> LabelerReport:
    name = votes.labelers[number]
    mine = (tallies.labeler == number) & ~tallies.repeat
    rest = (tallies.labeler != number) & ~tallies.repeat
    involved = (pairs.one == number) | (pairs.other == number)
    agrees, trials = pairs.agrees[involved], np.ones(int(involved.sum()))
    among_others = pairs.agrees[~involved]
    hits, asked = _same_again(votes.where(votes.labeler == number))

    def measured(z: float) -> dict[str, Interval]:
        return {
            "with_others": share_interval(agrees, trials, z),
            "with_self": share_interval(hits, asked, z),
            "checks": tallies.checks.share(mine, z),
            "first_position": tallies.first_position.share(mine, z),
            "longer": tallies.longer.share(mine, z),
            "others_longer": tallies.longer.share(rest, z),
            "seconds": tallies.median_seconds(mine),
            "fast": tallies.fast(mine, z),
        }

    usual = float(among_others.mean()) if len(among_others) else math.nan
    return LabelerReport(
        name,
        kinds[name],
        int((tallies.labeler == number).sum()),
        **measured(1.96),
        look=tuple(_worth_a_look(measured(LOOK), usual)),
    )


def _same_again(mine: Votes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each repeated task how many pairs were answered the same way again, and how many were compared."""
    again = mine.where(np.isin(mine.task, np.unique(mine.task[mine.repeat])))
    if not len(again):
        return np.zeros(0), np.zeros(0)
    rows, unit = again.units()
    said = np.full((len(rows), 2), -1)
    said[unit, again.repeat.astype(np.int64)] = again.outcome
    both = (said >= 0).all(1)
    cluster = np.unique(again.task[rows][both], return_inverse=True)[1].reshape(-1)
    same = (said[both, 0] == said[both, 1]).astype(np.float64)
    return np.bincount(cluster, same).astype(np.float64), np.bincount(cluster).astype(np.float64)


def _worth_a_look(found: Mapping[str, Interval], usual: float) -> list[str]:
    """Return reasons that chance would produce for about one labeler in 370."""
    checks, others, longer, baseline = found["checks"], found["with_others"], found["longer"], found["others_longer"]
    position, again, fast = found["first_position"], found["with_self"], found["fast"]
    reasons = []
    if checks.high < CHECKS_RIGHT:
        reasons.append(f"{checks.value:.0%} of {checks.count} check answers are right")
    if others.high < usual:
        reasons.append(
            f"agrees with others in {others.value:.0%} of {others.count} votes, they among themselves {usual:.0%}"
        )
    if again.high < SAME_AGAIN:
        reasons.append(f"repeats {again.value:.0%} of {again.count} answers when asked again")
    if longer.low > baseline.high:
        reasons.append(
            f"takes the longer answer in {longer.value:.0%} of {longer.count} votes, others {baseline.value:.0%}"
        )
    if position.low > 0.5 or position.high < 0.5:
        reasons.append(f"takes the first position in {position.value:.0%} of {position.count} votes")
    if fast.low > 0.1:
        reasons.append(f"answers {fast.value:.0%} within a quarter of the usual time")
    return reasons
