"""Rating one answer with a number: a judge as a reward.

As in direct RLAIF (Lee et al. 2023) the judge rates an answer, and the score is the mean rating under the judge's
probabilities of the ratings, so that it need not be a whole number. The paper rates from 1 to 10; here it is 1 to 9,
each of which is one token:

    score = (sum over k of k p_k - 5) / 4,   p = softmax of the log-probabilities of "1", ..., "9"

which lies in [-1, 1]. A generated rating is read from its last line and scaled in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.comparing import PRINCIPLES, Generate, Prompt, as_text, draw, one_for_each

RATINGS = tuple("123456789")
MIDDLE, REACH = 5.0, 4.0
LEAD = "The rating is"  # how the answer of a model in this process begins
INSTRUCTION = (
    "Rate the answer to a conversation by this principle: {principle}\n\n"
    "[Conversation]\n{prompt}\n\n[Answer]\n{answer}\n\n"
    "Rate it from 1 (worst) to 9 (best). "
)
BY_LOGPROB = "Reply with the number alone."
BY_REASONS = "Say briefly why, then end with one line such as 'Rating: 6'."
_RATING = re.compile(r"\brating\b[\s*_:=-]*\(?\**\s*([1-9])(?:\s*/\s*9)?\b[\s)*_.]*$", re.IGNORECASE | re.MULTILINE)

RatingLogProbabilities = Callable[[Sequence[str]], Sequence["Sequence[float] | None"]]


def rate_by_logprobs(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    logprobs: RatingLogProbabilities,
    principles: Sequence[str] = PRINCIPLES,
    seed: int = 0,
) -> list[float | None]:
    """Return the score in [-1, 1] of each answer; None for one that is too long for the model.

    Args:
        prompts: what was answered.
        answers: one per prompt.
        logprobs: returns the log-probabilities of the nine ratings for each question, in nats.
        principles: one is drawn per prompt, a function of the seed and the prompt: all answers to it are rated by the
            same.
        seed: seed of the draw.

    Raises:
        UserError: the model does not return nine numbers per question, or all are minus infinity.
    """
    questions = _questions(prompts, answers, principles, seed, BY_LOGPROB)
    found = one_for_each(logprobs(questions), questions)
    return [None if each is None else mean_rating(each) for each in found]


def rate_by_reasons(
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    generate: Generate,
    principles: Sequence[str] = PRINCIPLES,
    seed: int = 0,
) -> list[float | None]:
    """Return the score of each answer by a generated rating; None if it cannot be parsed. Arguments as above."""
    questions = _questions(prompts, answers, principles, seed, BY_REASONS)
    texts = one_for_each(generate(questions), questions)
    found = [parse_rating(text or "") for text in texts]
    return [None if rating is None else (rating - MIDDLE) / REACH for rating in found]


def mean_rating(logprobs: Sequence[float]) -> float:
    """Return the mean rating under the probabilities of the nine ratings, scaled to [-1, 1].

    >>> mean_rating([0.0] * 9), mean_rating([-1e9] * 8 + [0.0])
    (0.0, 1.0)

    Raises:
        UserError: they are not nine numbers, at least one of them finite.
    """
    values = np.asarray(logprobs, dtype=np.float64)
    if values.shape != (len(RATINGS),) or np.isnan(values).any() or not np.isfinite(values.max()):
        raise UserError("judge: the model must give log-probabilities of the ratings 1 to 9, one of them finite")
    weights = np.exp(values - values.max())
    ratings = np.arange(1, len(RATINGS) + 1)
    return float((ratings @ weights / weights.sum() - MIDDLE) / REACH)


def parse_rating(text: str) -> int | None:
    """Return the rating that a text ends with; None if it has none, or several that differ.

    >>> parse_rating("Clear and kind.\\n**Rating: 7/9**"), parse_rating("7"), parse_rating("Rating: 3\\nRating: 4")
    (7, None, None)
    """
    found = set(_RATING.findall(text))
    return int(found.pop()) if len(found) == 1 else None


def _questions(
    prompts: Sequence[Prompt], answers: Sequence[str], principles: Sequence[str], seed: int, ending: str
) -> list[str]:
    return [
        INSTRUCTION.format(principle=draw(principles, seed, prompt), prompt=as_text(prompt), answer=answer) + ending
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
