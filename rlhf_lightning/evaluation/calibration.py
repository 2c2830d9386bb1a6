"""Whether a reward model's margins mean the probabilities they claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ReliabilityCurve:
    """One entry a non-empty bin: mean claimed probability, share that was right, number of pairs."""

    confidence: list[float]
    accuracy: list[float]
    count: list[int]


def reliability_curve(margins: Sequence[float], bins: int = 10) -> ReliabilityCurve:
    """Bins pairs by the model's confidence in its own choice and counts how often that choice was the labeler's.

    `margins` are score(chosen) - score(rejected). By Bradley-Terry the model's choice is right with probability
    sigmoid(|margin|), in [0.5, 1]; it was right when the margin is positive, half right when it is zero. The bins cut
    [0, 1] into `bins` equal parts, as in `functional.calibration_error`; the lower half stays empty.

    >>> curve = reliability_curve([2.0, 2.0, 2.0, -2.0])
    >>> [round(x, 3) for x in curve.confidence], curve.accuracy, curve.count
    ([0.881], [0.75], [4])
    """
    grouped: list[list[tuple[float, float]]] = [[] for _ in range(bins)]
    for margin in margins:
        confidence = 1 / (1 + math.exp(-min(abs(margin), 500.0)))
        right = 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
        grouped[min(int(confidence * bins), bins - 1)].append((confidence, right))
    full = [pairs for pairs in grouped if pairs]
    return ReliabilityCurve(
        confidence=[sum(c for c, _ in pairs) / len(pairs) for pairs in full],
        accuracy=[sum(r for _, r in pairs) / len(pairs) for pairs in full],
        count=[len(pairs) for pairs in full],
    )


def expected_calibration_error(margins: Sequence[float], bins: int = 10) -> float:
    """Mean over pairs of |confidence - accuracy| of the pair's bin, in [0, 1]; 0 is calibrated.

    Source: Guo et al. 2017, "On calibration of modern neural networks", eq. 3.

    Raises:
        ValueError: without pairs.

    >>> round(expected_calibration_error([2.0, 2.0, 2.0, -2.0]), 3)
    0.131
    """
    if not margins:
        raise ValueError("a calibration error needs at least one pair, found none")
    curve = reliability_curve(margins, bins)
    gaps = zip(curve.confidence, curve.accuracy, curve.count, strict=True)
    return sum(abs(confidence - accuracy) * count for confidence, accuracy, count in gaps) / sum(curve.count)
