"""Simulated people who choose between two answers: Bradley-Terry on the gold reward, with human failings."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation.gold import gold_reward


@dataclass
class Labeler:
    """A noisy labeler, optionally biased towards length.

        P(a preferred to b) = (1 - flip_rate) p + flip_rate (1 - p)
        p = sigmoid((gold(a) - gold(b) + length_bias (words(a) - words(b))) / temperature)

    Args:
        temperature: in gold points, above 0; 0.5 means that a difference of one point is seen with odds of e^2 = 7.4.
        flip_rate: share of choices recorded the wrong way round, in [0, 0.5].
        length_bias: gold points per extra word by which a longer answer seems better than it is; 0 for none.
        seed: seed of the labeler's own random numbers.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 0.5
    flip_rate: float = 0.03
    length_bias: float = 0.0
    seed: int = 0
    _rng: random.Random = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"labeler temperature is {self.temperature}; choose a number above 0 (0.5 is the default)")
        if not 0 <= self.flip_rate <= 0.5:
            raise UserError(f"labeler flip_rate is {self.flip_rate}; choose a share from 0 to 0.5")
        self._rng = random.Random(f"labeler:{self.seed}")

    def probability(self, gold_difference: float, length_difference: float = 0.0) -> float:
        """Return P(a preferred to b) for gold(a) - gold(b) in points and words(a) - words(b).

        Example:
            >>> round(Labeler(temperature=0.5, flip_rate=0.0).probability(1.0), 3)
            0.881
        """
        utility = (gold_difference + self.length_bias * length_difference) / self.temperature
        # tanh does not overflow for any utility.
        p = 0.5 * (1.0 + math.tanh(0.5 * utility))
        return (1.0 - self.flip_rate) * p + self.flip_rate * (1.0 - p)

    def compare(self, prompt: str, a: str, b: str) -> float:
        """Return P(a preferred to b) for two answers to a prompt of the world."""
        gold_a, gold_b = gold_reward([prompt, prompt], [a, b])
        return self.probability(gold_a - gold_b, len(a.split()) - len(b.split()))

    def prefer(self, prompt: str, a: str, b: str) -> tuple[str, str]:
        """Choose, and return (chosen, rejected)."""
        return (a, b) if self._rng.random() < self.compare(prompt, a, b) else (b, a)

    def rank(self, prompt: str, answers: Sequence[str]) -> list[str]:
        """Return K answers ranked, best first.

        Plackett-Luce: Gumbel noise on the utilities, so that every pair is Bradley-Terry. A flip swaps two adjacent
        answers of the finished ranking.
        """
        golds = gold_reward([prompt] * len(answers), answers)
        keys = [
            (gold + self.length_bias * len(answer.split())) / self.temperature - math.log(-math.log(self._rng.random()))
            for gold, answer in zip(golds, answers, strict=True)
        ]
        ranking = [answers[i] for i in sorted(range(len(answers)), key=lambda i: -keys[i])]
        for i in range(len(ranking) - 1):
            if self._rng.random() < self.flip_rate:
                ranking[i], ranking[i + 1] = ranking[i + 1], ranking[i]
        return ranking

    def bayes_accuracy(self, pairs: Iterable[tuple[str, str, str]]) -> float:
        """Return the ceiling: the expected accuracy of the best possible predictor on this labeler's choices.

            mean over (prompt, a, b) of max(p, 1 - p),  p = P(a preferred to b)

        That predictor knows the gold reward and the labeler's bias; only the coin tosses remain.

        Raises:
            UserError: there are no pairs.
        """
        return mean_certainty([self.compare(prompt, a, b) for prompt, a, b in pairs])


def mean_certainty(probabilities: Sequence[float]) -> float:
    """Return the mean of max(p, 1 - p), the Bayes accuracy for these probabilities (column `label_probability`).

    Raises:
        UserError: there are no probabilities.

    Example:
        >>> mean_certainty([0.75, 0.5])
        0.625
    """
    if not probabilities:
        raise UserError("the Bayes accuracy of no pairs is not defined; give at least one preference pair")
    return sum(max(p, 1.0 - p) for p in probabilities) / len(probabilities)


def oracle_accuracy(gold_chosen: Sequence[float], gold_rejected: Sequence[float]) -> float:
    """Return the share of labels whose chosen answer has the higher gold score (ties count half), a ceiling.

    Raises:
        UserError: there are no pairs.
    """
    if not gold_chosen:
        raise UserError("the oracle accuracy of no pairs is not defined; give at least one preference pair")
    right = sum((c > r) + 0.5 * (c == r) for c, r in zip(gold_chosen, gold_rejected, strict=True))
    return right / len(gold_chosen)
