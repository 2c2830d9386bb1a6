"""Which of two answers is better: by log-probability in both orders, or generated and parsed.

When asked which of two answers is better, language models prefer a position. Each pair is therefore judged in both
orders and the probabilities are averaged (Lee et al. 2023, section 2.1). A principle per comparison is drawn from a
constitution (Bai et al. 2022).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.errors import UserError
from rlhf_lightning.message_text import message_text

Prompt: TypeAlias = "str | list[dict[str, Any]]"

_VERDICT = re.compile(r"\bverdict\b[\s*_:=-]*\(?\**\s*(A|B|tie)\b[\s)*_.]*$", re.IGNORECASE | re.MULTILINE)
INSTRUCTION = (
    "Compare two answers to a conversation by this principle: {principle}\n\n"
    "[Conversation]\n{prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
)
BY_LOGPROB = "Which answer is better, A or B? Reply with the letter alone."
BY_REASONS = "Say briefly why, then end with one line, 'Verdict: A', 'Verdict: B' or 'Verdict: tie'."
PRINCIPLES = (
    "choose the answer that is more helpful, honest and harmless; where these are in conflict, harmless comes first",
)

# The log-probabilities of the verdicts A and B for each question; None if a question is too long for the model.
LogProbabilities = Callable[[Sequence[str]], Sequence["Sequence[float] | None"]]
Generate = Callable[[Sequence[str]], Sequence["str | None"]]


_Said = TypeVar("_Said")


def one_for_each(answers: Iterable[_Said], questions: Sequence[str]) -> list[_Said]:
    """Return the answers. Raises UserError if their number differs from that of the questions."""
    found = list(answers)
    if len(found) != len(questions):
        raise UserError(f"judge: {len(found)} answers to {len(questions)} questions; the model must give one for each")
    return found


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt."""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True)
class Compared:
    """A judge's verdict on a comparison.

    Args:
        probability: probability that the first answer is better, over both orders.
        as_shown: the same with the first answer shown first.
        swapped: the same with the second answer shown first.
        principle: the principle it was judged by.
        reasons: the generated texts, in both orders.
    """

    probability: float
    as_shown: float
    swapped: float
    principle: str
    reasons: tuple[str, ...] = ()


def compare_by_logprobs(
    comparisons: Sequence[Comparison], logprobs: LogProbabilities, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> list[Compared | None]:
    """Judge by the probability of A against B, averaged over both orders:

        P(first) = (sigma(a - b) of the order as shown + sigma(b - a) of the swapped order) / 2

    where a and b are the log-probabilities of the two verdicts, in nats.

    Args:
        comparisons: what is judged.
        logprobs: the model's log-probabilities.
        principles: one is drawn per comparison, a function of the seed and the texts.
        seed: seed of the draw.

    Returns:
        None for a comparison that is too long for the model.

    Raises:
        UserError: the model does not return exactly two finite numbers per question.
    """
    asked = [draw(principles, seed, [each.prompt, sorted((each.first, each.second))]) for each in comparisons]
    questions = _questions(comparisons, asked, BY_LOGPROB)
    pairs = list(logprobs(questions))
    if len(pairs) != len(questions) or any(pair is not None and not _is_finite(pair) for pair in pairs):
        raise UserError(
            f"judge: the model must give two finite log-probabilities for each of {len(questions)} questions"
        )
    first = [None if pair is None else 1 / (1 + math.exp(min(700.0, pair[1] - pair[0]))) for pair in pairs]
    return [
        None if shown is None or swapped is None else _averaged(shown, swapped, principle)
        for principle, shown, swapped in zip(asked, first[::2], first[1::2], strict=True)
    ]


def compare_by_reasons(
    comparisons: Sequence[Comparison], generate: Generate, principles: Sequence[str] = PRINCIPLES, seed: int = 0
) -> list[Compared | None]:
    """Judge by generated verdicts with reasons, averaged over both orders. Arguments as for `compare_by_logprobs`.

    Returns:
        None for a comparison with a verdict that cannot be parsed, or that is too long for the model.
    """
    asked = [draw(principles, seed, [each.prompt, sorted((each.first, each.second))]) for each in comparisons]
    questions = _questions(comparisons, asked, BY_REASONS)
    texts = one_for_each(generate(questions), questions)
    found: list[Compared | None] = []
    for principle, shown, swapped in zip(asked, texts[::2], texts[1::2], strict=True):
        one, other = parse_verdict(shown or ""), parse_verdict(swapped or "")
        if one is None or other is None or shown is None or swapped is None:
            found.append(None)
        else:
            found.append(_averaged(one, other, principle, (shown, swapped)))
    return found


def parse_verdict(text: str) -> float | None:
    """Return 1 for A, 0 for B, 0.5 for a tie; None if a text has no verdict, or contradictory ones.

    >>> parse_verdict("Both are fine.\\n\\n**Verdict: B**"), parse_verdict("A is good."), parse_verdict("Verdict: tie")
    (0.0, None, 0.5)
    """
    found = {each.lower() for each in _VERDICT.findall(text)}
    return {"a": 1.0, "b": 0.0, "tie": 0.5}[found.pop()] if len(found) == 1 else None


def draw(principles: Sequence[str], seed: int, content: Any) -> str:
    """Return one of the principles, a function of the seed and of what is judged."""
    return principles[int(content_hash([seed, "principle", content]), 16) % len(principles)]


def same_verdict(as_shown: float, swapped: float) -> bool:
    """Return whether both orders give the same verdict: the first answer, the second one, or a tie.

    Args:
        as_shown, swapped: probability that the first answer is better, by the order.

    >>> same_verdict(0.9, 0.6), same_verdict(0.5, 0.5), same_verdict(0.9, 0.5)
    (True, True, False)
    """
    return (as_shown > 0.5) == (swapped > 0.5) and (as_shown < 0.5) == (swapped < 0.5)


def as_text(prompt: Prompt) -> str:
    """Return a prompt as the judge reads it: a conversation as one line per message."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message_text(message)}" for message in prompt)


def _averaged(shown: float, swapped: float, principle: str, reasons: tuple[str, ...] = ()) -> Compared:
    """Return the verdict of both orders from the probability of the answer that each shows first.

    `shown + 1 - swapped` is not exactly 1 where both are equal, and what should be a tie would be a choice.
    """
    return Compared((shown + (1 - swapped)) / 2, shown, 1 - swapped, principle, reasons)


def _is_finite(pair: Sequence[float]) -> bool:
    return len(pair) == 2 and all(map(math.isfinite, pair))


def _questions(comparisons: Iterable[Comparison], principles: Iterable[str], ending: str) -> list[str]:
    """Return two questions per comparison: as shown, and swapped."""

    def each() -> Iterator[str]:
        for pair, principle in zip(comparisons, principles, strict=True):
            for a, b in ((pair.first, pair.second), (pair.second, pair.first)):
                yield INSTRUCTION.format(principle=principle, prompt=as_text(pair.prompt), first=a, second=b) + ending

    return list(each())
