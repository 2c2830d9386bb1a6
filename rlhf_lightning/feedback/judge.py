"""A judge's verdicts on tasks, as a labeler's answers, and its position bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.coefficients import Z95, Interval, share_interval, wilson
from rlhf_lightning.feedback.records import Answer, Task, dense_ranks
from rlhf_lightning.judging.comparing import (
    PRINCIPLES,
    Compared,
    Comparison,
    Generate,
    LogProbabilities,
    compare_by_logprobs,
    compare_by_reasons,
    same_verdict,
)


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict on a pair.

    Args:
        task: the task's id.
        probability: probability that the first answer, as the task shows it, is better.
        as_shown: the same in the task's order only.
        swapped: the same in the swapped order only.
        principle: the principle it was judged by.
        reasons: the generated texts, in both orders.
    """

    task: str
    probability: float
    as_shown: float
    swapped: float
    principle: str
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, task: str, found: Compared) -> Verdict:
        """Return the verdict on a task."""
        return cls(task, found.probability, found.as_shown, found.swapped, found.principle, found.reasons)

    def answer(self, tie_below: float = 0.0) -> Answer:
        """Return the verdict as an answer: a tie if the probability is within `tie_below` of one half."""
        if abs(self.probability - 0.5) <= tie_below:
            return Answer("tie", note=self._note())
        return Answer("choice", int(self.probability < 0.5), note=self._note())

    def _note(self) -> str:
        return f"P(first) {self.probability:.4f}: {self.as_shown:.4f} as shown, {self.swapped:.4f} swapped"


@dataclass(frozen=True)
class PositionBias:
    """How far verdicts depend on the order.

    Args:
        first: the mean probability of the answer shown first, over both orders: 0.5 without bias.
        consistent: share of the pairs with the same verdict in both orders; ties in both are the same.
    """

    first: Interval
    consistent: Interval


def judge_by_logprobs(
    tasks: Sequence[Task], logprobs: LogProbabilities, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> list[Verdict]:
    """Judge pairs by the probability of A against B, averaged over both orders (see `compare_by_logprobs`).

    Args:
        tasks: pairs.
        logprobs: the model's log-probabilities.
        principles: one is drawn per task, a function of the seed and the task's texts.
        seed: seed of the draw.

    Raises:
        UserError: a task is not a pair, or the model returns no numbers.
    """
    found = compare_by_logprobs([_pair(task) for task in tasks], logprobs, principles, seed)
    return [Verdict.of(task.id, each) for task, each in zip(tasks, found, strict=True) if each is not None]


def judge_by_reasons(
    tasks: Sequence[Task], generate: Generate, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> tuple[list[Verdict], list[str]]:
    """Judge pairs by generated verdicts with reasons, averaged over both orders.

    Returns:
        The verdicts, and the ids of tasks with a verdict that cannot be parsed.
    """
    found = compare_by_reasons([_pair(task) for task in tasks], generate, principles, seed)
    verdicts = [Verdict.of(task.id, each) for task, each in zip(tasks, found, strict=True) if each is not None]
    return verdicts, [task.id for task, each in zip(tasks, found, strict=True) if each is None]


def comparisons_of(task: Task) -> list[Comparison]:
    """Return the comparisons that judge a task: for a ranking, all pairs of its responses, in the order shown."""
    texts = [response.text for response in task.responses]
    return [Comparison(task.prompt, first, second) for first, second in combinations(texts, 2)]


def answer_of(task: Task, found: Sequence[Compared], tie_below: float = 0.0) -> Answer:
    """Return the answer that a judge's comparisons give: for a ranking, by the sum of winning probabilities.

    Args:
        task: the judged task.
        found: one per comparison, in the order of `comparisons_of`.
        tie_below: a probability within this of one half is a tie.
    """
    if task.kind == "pair":
        return Verdict.of(task.id, found[0]).answer(tie_below)
    points = [0.0] * len(task.responses)
    for (first, second), each in zip(combinations(range(len(points)), 2), found, strict=True):
        wins = 0.5 if abs(each.probability - 0.5) <= tie_below else each.probability
        points[first] += wins
        points[second] += 1 - wins
    return Answer("ranking", ranks=dense_ranks([-round(each, 9) for each in points]))


def position_bias(verdicts: Sequence[Verdict | Compared]) -> PositionBias:
    """Return how far verdicts depend on the order, with intervals over tasks.

    That of the mean is normal, within [0, 1]; if all verdicts are the same, it is Wilson's, which has a width then too.
    """
    count = len(verdicts)
    first = np.array([(each.as_shown + 1 - each.swapped) / 2 for each in verdicts])
    same = np.array([float(same_verdict(each.as_shown, each.swapped)) for each in verdicts])
    consistent = share_interval(same, np.ones(count))
    if count < 2:
        return PositionBias(Interval(float(first.mean()) if count else math.nan, math.nan, math.nan, count), consistent)
    mean, error = float(first.mean()), float(first.std(ddof=1)) / math.sqrt(count)
    ends = (max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error)) if np.ptp(first) else wilson(mean, count)
    return PositionBias(Interval(mean, *ends, count), consistent)


def _pair(task: Task) -> Comparison:
    if task.kind != "pair":
        raise UserError(f"judge: task {task.id} is a {task.kind}; a judge compares pairs")
    first, second = (response.text for response in task.responses)
    return Comparison(task.prompt, first, second)
