"""A world of additions whose wrong steps are known: what a process reward model can reach at best is computable.

A chain begins with a digit, and each step adds another to the last result, of which only the last digit is kept:

    from 3        3 + 4 = 7 ;        7 + 8 = 5 ;        5 + ? = 1 ;

A result is wrong with a known probability, and is then any other digit. Labels are noisy: each is flipped with a known
probability. Some steps hide what they add, so that nobody can tell whether they are right; they are right with a known
probability. So the probability that the label of a step is `true` given all that can be read is known, and the mean of
the larger of the two probabilities is the Bayes ceiling of the accuracy per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SEPARATOR = " ;"
HIDDEN = "?"


@dataclass(frozen=True)
class Arithmetic:
    """The probabilities of the world.

    Args:
        base: digits 0 to base - 1.
        wrong: a visible step has a wrong result.
        hidden: a step hides what it adds.
        hidden_right: the label of a hidden step is `true`, before noise.
        noise: a label is flipped.
        most: most steps of a chain; their number is uniform from 1 on.
    """

    base: int = 10
    wrong: float = 0.4
    hidden: float = 0.15
    hidden_right: float = 0.7
    noise: float = 0.05
    most: int = 5

    def words(self) -> list[str]:
        """Return every word of the world."""
        return [*map(str, range(self.base)), "from", "+", "=", ";", HIDDEN]

    def rows(self, count: int, seed: int) -> list[dict[str, Any]]:
        """Return rows of `prompt`, `completions` and `labels`, a function of the seed."""
        rng = np.random.default_rng([seed, count])
        return [self._row(rng) for _ in range(count)]

    def _row(self, rng: np.random.Generator) -> dict[str, Any]:
        before = int(rng.integers(self.base))
        prompt, steps, labels = f"from {before}", [], []
        for _ in range(int(rng.integers(1, self.most + 1))):
            added, right = int(rng.integers(self.base)), bool(rng.random() >= self.wrong)
            result = (before + added + (0 if right else int(rng.integers(1, self.base)))) % self.base
            shown = str(added)
            if rng.random() < self.hidden:
                shown, right = HIDDEN, bool(rng.random() < self.hidden_right)
            steps.append(f" {before} + {shown} = {result}")
            labels.append(right != bool(rng.random() < self.noise))
            before = result
        return {"prompt": prompt, "completions": steps, "labels": labels}

    def probability(self, step: str) -> float:
        """Return the probability that the label of a step is `true`, given its text.

        Raises:
            ValueError: the text is not a step of this world.
        """
        right = self.is_right(step)
        certain = self.hidden_right if right is None else float(right)
        return certain * (1 - self.noise) + (1 - certain) * self.noise

    def is_right(self, step: str) -> bool | None:
        """Return whether a step adds up; None if it hides what it adds.

        >>> Arithmetic().is_right(" 7 + 8 = 5"), Arithmetic().is_right("7 + ? = 5")
        (True, None)

        Raises:
            ValueError: the text is not a step of this world.
        """
        parts = step.split()
        if len(parts) != 5 or (parts[1], parts[3]) != ("+", "="):
            raise ValueError(f"{step!r} is not a step such as '7 + 8 = 5'")
        if parts[2] == HIDDEN:
            return None
        return (int(parts[0]) + int(parts[2]) - int(parts[4])) % self.base == 0

    def ceiling(self, rows: Sequence[dict[str, Any]]) -> float:
        """Return the highest expected accuracy per step on these rows' steps: the mean of max(p, 1 - p)."""
        found = [self.probability(step) for row in rows for step in row["completions"]]
        return float(np.mean([max(p, 1 - p) for p in found]))
