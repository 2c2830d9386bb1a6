"""A judge's verdicts on tasks, as answers of a labeler; its position bias."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.coefficients import Interval, share_interval
from rlhf_lightning.feedback.records import Answer, Task, dense_ranks
from rlhf_lightning.judging.comparing import (
    PRINCIPLES,
    Compared,
    Comparison,
    Generate,
    LogProbabilities,
    compare_by_logprobs,
    compare_by_reasons,
)


@dataclass(frozen=True)
class Verdict:
    """What a judge says of a pair.

    Args:
        task: the task's id.
        probability: that the first answer, as the task shows it, is the better one.
        as_shown: the same by the order of the task alone.
        swapped: the same by the other order alone.
        principle: by which it was judged.
        reasons: what was generated, in both orders.
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
        """Return it as an answer: a tie where the probability is within `tie_below` of a half."""
        if abs(self.probability - 0.5) <= tie_below:
            return Answer("tie", note=self._note())
        return Answer("choice", int(self.probability < 0.5), note=self._note())

    def _note(self) -> str:
        return f"P(first) {self.probability:.4f}: {self.as_shown:.4f} as shown, {self.swapped:.4f} swapped"


@dataclass(frozen=True)
class PositionBias:
    """How far verdicts depend on the order.

    Args:
        first: the mean probability of the answer that is shown first, over both orders: 0.5 without a bias.
        consistent: share of the pairs whose better answer is the same in both orders.
    """

    first: Interval
    consistent: Interval


def judge_by_logprobs(
    tasks: Sequence[Task], logprobs: LogProbabilities, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> list[Verdict]:
    """Judge pairs by the probability of A against B, averaged over both orders (see `compare_by_logprobs`).

    Args:
        tasks: pairs.
        logprobs: of the model.
        principles: one is drawn per task, a function of the seed and the task's texts.
        seed: of the draw.

    Raises:
        UserError: a task is not a pair, or the model gives no numbers.
    """
    found = compare_by_logprobs([_pair(task) for task in tasks], logprobs, principles, seed)
    return [Verdict.of(task.id, each) for task, each in zip(tasks, found, strict=True) if each is not None]


def judge_by_reasons(
    tasks: Sequence[Task], generate: Generate, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> tuple[list[Verdict], list[str]]:
    """Judge pairs by generated verdicts with reasons, averaged over both orders.

    Returns:
        The verdicts, and the ids of the tasks of which a verdict does not parse.
    """
    found = compare_by_reasons([_pair(task) for task in tasks], generate, principles, seed)
    verdicts = [Verdict.of(task.id, each) for task, each in zip(tasks, found, strict=True) if each is not None]
    return verdicts, [task.id for task, each in zip(tasks, found, strict=True) if each is None]


def comparisons_of(task: Task) -> list[Comparison]:
    """Return the comparisons that judge a task: of a ranking all pairs of its responses, in the order shown."""
    texts = [response.text for response in task.responses]
    return [Comparison(task.prompt, first, second) for first, second in combinations(texts, 2)]


def answer_of(task: Task, found: Sequence[Compared], tie_below: float = 0.0) -> Answer:
    """Return what a judge's comparisons of a task say: of a ranking, by the sum of the probabilities to win.

    Args:
        task: that was judged.
        found: one per comparison, in the order of `comparisons_of`.
        tie_below: a probability within it of a half is a tie.
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
    """Return how far verdicts depend on the order, with intervals over tasks."""
    count = len(verdicts)
    first = np.array([(each.as_shown + 1 - each.swapped) / 2 for each in verdicts])
    same = np.array([float((each.as_shown - 0.5) * (each.swapped - 0.5) > 0) for each in verdicts])
    consistent = share_interval(same, np.ones(count))
    if count < 2:
        return PositionBias(Interval(float(first.mean()) if count else math.nan, math.nan, math.nan, count), consistent)
    mean, error = float(first.mean()), float(first.std(ddof=1)) / math.sqrt(count)
    return PositionBias(Interval(mean, mean - 1.96 * error, mean + 1.96 * error, count), consistent)


def _pair(task: Task) -> Comparison:
    if task.kind != "pair":
        raise UserError(f"judge: task {task.id} is a {task.kind}; a judge compares pairs")
    first, second = (response.text for response in task.responses)
    return Comparison(task.prompt, first, second)
