"""A model as labeler: verdicts by log-probability in both orders, or generated and parsed; its position bias.

Asked which of two answers is better, language models prefer a position. Each pair is therefore judged in both orders
and the probabilities are averaged (Lee et al. 2023, section 2.1). A principle per comparison is drawn from a
constitution (Bai et al. 2022).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.feedback.coefficients import Interval, share_interval
from rlhf_lightning.feedback.records import Answer, Prompt, Task, content_hash

_VERDICT = re.compile(r"\bverdict\b[\s*_:=-]*\(?\**\s*(A|B|tie)\b[\s)*_.]*$", re.IGNORECASE | re.MULTILINE)
INSTRUCTION = (
    "Compare two answers to a conversation by this principle: {principle}\n\n"
    "[Conversation]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
)
BY_LOGPROB = "Which answer is better, A or B? The better answer is"
BY_REASONS = "Say briefly why, then end with one line, 'Verdict: A', 'Verdict: B' or 'Verdict: tie'."
PRINCIPLES = (
    "choose the answer that is more helpful, honest and harmless; where these are in conflict, harmless comes first",
)

# For each question, the log-probabilities of going on with " A" and with " B".
LogProbabilities = Callable[[Sequence[str]], Sequence[tuple[float, float]]]
Generate = Callable[[Sequence[str]], Sequence[str]]


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
    """Judge pairs by the probability of " A" against " B", averaged over both orders.

    Args:
        tasks: pairs.
        logprobs: of the model.
        principles: one is drawn per task, a function of the seed and the task.
        seed: of the draw.

    Raises:
        UserError: a task is not a pair, or the model gives no numbers.
    """
    asked = [_principle(task, principles, seed) for task in tasks]
    questions = _questions(tasks, asked, BY_LOGPROB)
    pairs = list(logprobs(questions))
    if len(pairs) != len(questions) or any(not all(map(math.isfinite, pair)) for pair in pairs):
        raise UserError(
            f"judge: the model must give two finite log-probabilities for each of {len(questions)} questions"
        )
    first = [1 / (1 + math.exp(min(700.0, b - a))) for a, b in pairs]
    return [
        Verdict(task.id, (shown + 1 - swapped) / 2, shown, 1 - swapped, principle)
        for task, principle, shown, swapped in zip(tasks, asked, first[::2], first[1::2], strict=True)
    ]


def judge_by_reasons(
    tasks: Sequence[Task], generate: Generate, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> tuple[list[Verdict], list[str]]:
    """Judge pairs by generated verdicts with reasons, averaged over both orders.

    Returns:
        The verdicts, and the ids of the tasks of which a verdict does not parse.
    """
    asked = [_principle(task, principles, seed) for task in tasks]
    texts = list(generate(_questions(tasks, asked, BY_REASONS)))
    if len(texts) != 2 * len(tasks):
        raise UserError(f"judge: {len(texts)} answers to {2 * len(tasks)} questions; the model must give one for each")
    verdicts, refused = [], []
    for task, principle, shown, swapped in zip(tasks, asked, texts[::2], texts[1::2], strict=True):
        one, other = parse_verdict(shown), parse_verdict(swapped)
        if one is None or other is None:
            refused.append(task.id)
        else:
            verdicts.append(Verdict(task.id, (one + 1 - other) / 2, one, 1 - other, principle, (shown, swapped)))
    return verdicts, refused


def parse_verdict(text: str) -> float | None:
    """Return 1 for A, 0 for B, 0.5 for a tie; None where a text has no verdict, or verdicts that contradict each other.

    >>> parse_verdict("Both are fine.\\n\\n**Verdict: B**"), parse_verdict("A is good."), parse_verdict("Verdict: tie")
    (0.0, None, 0.5)
    """
    found = {each.lower() for each in _VERDICT.findall(text)}
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[found.pop()] if len(found) == 1 else None


def position_bias(verdicts: Sequence[Verdict]) -> PositionBias:
    """Return how far verdicts depend on the order, with intervals over tasks."""
    count = len(verdicts)
    first = np.array([(each.as_shown + 1 - each.swapped) / 2 for each in verdicts])
    same = np.array([float((each.as_shown - 0.5) * (each.swapped - 0.5) > 0) for each in verdicts])
    consistent = share_interval(same, np.ones(count))
    if count < 2:
        return PositionBias(Interval(float(first.mean()) if count else math.nan, math.nan, math.nan, count), consistent)
    mean, error = float(first.mean()), float(first.std(ddof=1)) / math.sqrt(count)
    return PositionBias(Interval(mean, mean - 1.96 * error, mean + 1.96 * error, count), consistent)


def read_constitution(path: str | Path) -> tuple[str, ...]:
    """Return the principles of a YAML file: a list of texts, or a mapping with `principles`.

    Raises:
        UserError: it cannot be read, or holds no principle.
    """
    import yaml  # type: ignore[import-untyped]

    with blaming(f"judge.constitution: {path} cannot be read", "give a YAML file with a list of principles"):
        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    listed = content.get("principles") if isinstance(content, dict) else content
    if not isinstance(listed, list) or not listed or not all(isinstance(each, str) and each.strip() for each in listed):
        raise UserError(f"judge.constitution: {path} must hold a list of texts, or `principles:` with one")
    return tuple(each.strip() for each in listed)


def _principle(task: Task, principles: Sequence[str], seed: int) -> str:
    if task.kind != "pair":
        raise UserError(f"judge: task {task.id} is a {task.kind}; a judge compares pairs")
    return principles[int(content_hash([seed, "principle", task.id]), 16) % len(principles)]


def _questions(tasks: Iterable[Task], principles: Iterable[str], ending: str) -> list[str]:
    """Two per task: as shown, and swapped."""

    def each() -> Iterator[str]:
        for task, principle in zip(tasks, principles, strict=True):
            first, second = (response.text for response in task.responses)
            for a, b in ((first, second), (second, first)):
                filled = INSTRUCTION.format(principle=principle, prompt=_plain(task.prompt), first=a, second=b)
                yield filled + ending

    return list(each())


def _plain(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)
