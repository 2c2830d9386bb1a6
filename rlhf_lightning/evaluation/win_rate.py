"""How often one policy's response scores above another's on the same prompt, with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z_95 = 1.959963984540054  # the 97.5% quantile of the standard normal


@dataclass(frozen=True)
class WinRate:
    """A share in [0, 1] with its 95% interval."""

    rate: float
    low: float
    high: float


def wilson_interval(rate: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return Wilson's score interval of a share `rate` observed in `n` independent trials.

    centre = (rate + z^2 / 2n) / (1 + z^2 / n),  half = z sqrt(rate (1 - rate) / n + z^2 / 4n^2) / (1 + z^2 / n)

    It stays inside [0, 1] and has a positive width even if all trials agree, where a bootstrap would report certainty.

    Raises:
        ValueError: there are no trials.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> low, high = wilson_interval(0.5, 100)
    >>> round(low, 4), round(high, 4)
    (0.4038, 0.5962)
    >>> [round(x, 4) for x in wilson_interval(1.0, 10)]
    [0.7225, 1.0]
    """
    if n < 1:
        raise ValueError(f"an interval needs at least one trial, found {n}")
    scale = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(max(rate * (1 - rate), 0.0) / n + z * z / (4 * n * n)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def win_rate(scores: Sequence[float], baseline_scores: Sequence[float], samples_per_prompt: int = 1) -> WinRate:
    """Return the share of paired comparisons that `scores` wins; a tie counts half.

    rate = mean over prompts of mean over samples of [score > baseline] + 0.5 [score == baseline]

    Entries are prompt-major: the `samples_per_prompt` responses of the first prompt, then those of the second.
    The interval is Wilson's with one trial per prompt. Outcomes between 0 and 1 (ties, several samples) vary less
    than the coin flips Wilson assumes, so the interval is then slightly too wide, never too narrow.

    Raises:
        ValueError: lengths differ, or are not a multiple of `samples_per_prompt`.

    >>> win_rate([2.0, 1.0, 0.0, 5.0], [1.0, 1.0, 3.0, 4.0]).rate
    0.625
    """
    if len(scores) != len(baseline_scores) or len(scores) % samples_per_prompt:
        raise ValueError(
            f"a win rate compares equally many scores, a multiple of {samples_per_prompt} (samples per prompt); "
            f"found {len(scores)} and {len(baseline_scores)}"
        )
    outcomes = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, baseline_scores, strict=True)]
    prompts = len(outcomes) // samples_per_prompt
    rate = sum(outcomes) / max(len(outcomes), 1)
    low, high = wilson_interval(rate, prompts)
    return WinRate(rate, low, high)
