"""A win rate as it would be if both policies' answers were equally long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.evaluation.win_rate import Z_95, WinRate, wilson_interval

Numbers = NDArray[np.float64]

RIDGE = 0.01  # on both coefficients: keeps them finite if one policy wins every comparison
FARTHEST = 16.0  # of theta: 1 - sigmoid is 1e-7
STEEPEST = 100.0  # of phi
HALVINGS = 40


def length_controlled_win_rate(
    outcomes: Sequence[float],
    lengths: Sequence[float],
    baseline_lengths: Sequence[float],
    samples_per_prompt: int = 1,
) -> WinRate:
    """Return the win rate that a logistic regression predicts at equal lengths, with its 95% interval.

        P(win) = sigmoid(theta + phi tanh(d / s)),    d = length - baseline's,  s = root mean square of d;
        rate   = sigmoid(theta)

    Judges prefer longer answers; a policy that only writes more has theta near 0. A policy whose answers are all longer
    by the same amount cannot be distinguished from a better one: the interval is then wide.

    The interval has the thetas that a likelihood-ratio test does not reject, whatever phi is (the profile likelihood),
    with one trial per prompt and a tie as half a win. It is at least as wide as Wilson's of the same outcomes.

    Args:
        outcomes: 1 for a win, 0.5 for a tie, 0 for a loss, in prompt-major order.
        lengths, baseline_lengths: of the answers that were compared, in any unit.
        samples_per_prompt: number of adjacent entries that answer the same prompt and count as one trial.

    Raises:
        ValueError: the arguments have different lengths, are empty, or no multiple of `samples_per_prompt`.

    Source: Dubois et al. 2024, "Length-controlled AlpacaEval", equation 1, without the instruction terms.

    >>> length_controlled_win_rate([1, 0, 1, 0], [5, 5, 5, 5], [5, 5, 5, 5]).rate
    0.5
    """
    won = np.asarray(outcomes, dtype=float)
    difference = np.asarray(lengths, dtype=float) - np.asarray(baseline_lengths, dtype=float)
    if won.shape != difference.shape:
        raise ValueError(f"{len(won)} outcomes of {len(difference)} pairs of lengths; there must be one for each")
    if len(won) % samples_per_prompt:
        raise ValueError(f"{len(won)} outcomes are not a multiple of {samples_per_prompt} (samples per prompt)")
    low, high = wilson_interval(float(won.mean()) if len(won) else 0.0, len(won) // samples_per_prompt)
    scale = float(np.sqrt(np.mean(difference**2))) or 1.0
    longer = np.tanh(difference / scale)
    rate = _at_equal_lengths(won, longer)
    start = min(max(rate - (high - low) / 2, 0.0), 1 - (high - low))
    ends = _not_rejected(won, longer, 1 / samples_per_prompt)
    return WinRate(rate, min(start, ends[0]), max(start + high - low, ends[1]))


def _at_equal_lengths(won: Numbers, longer: Numbers) -> float:
    """Return sigmoid(theta), fitted by Newton's method."""
    rows, beta = np.stack([np.ones_like(longer), longer], axis=1), np.zeros(2)
    for _ in range(25):
        p = 1 / (1 + np.exp(-rows @ beta))
        gradient = rows.T @ (p - won) + RIDGE * beta
        step = np.linalg.solve((rows.T * (p * (1 - p))) @ rows + RIDGE * np.eye(2), gradient)
        beta = beta - step
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(1 / (1 + np.exp(-beta[0])))


def _not_rejected(won: Numbers, longer: Numbers, weight: float) -> tuple[float, float]:
    """Return the least and the largest sigmoid(theta) that a likelihood-ratio test at 5% does not reject.

    Only phi has the ridge, so that its best value exists for every theta; each entry counts `weight` times. With few
    trials n the test rejects too often, so that its limit is raised by 1 + 2 / n: in simulations with 10 to 100 trials
    the intervals then hold the truth about as often as they say.
    """

    def residuals(theta: float, phi: float) -> Numbers:
        return weight * (1 / (1 + np.exp(-theta - phi * longer)) - won)

    def best(theta: float) -> float:
        return _root(lambda phi: float(residuals(theta, phi) @ longer) + RIDGE * phi, -STEEPEST, STEEPEST)

    def loss(theta: float) -> float:
        phi = best(theta)
        logits = theta + phi * longer
        return weight * float((np.logaddexp(0, logits) - won * logits).sum()) + RIDGE * phi**2 / 2

    middle = _root(lambda theta: float(residuals(theta, best(theta)).sum()), -FARTHEST, FARTHEST)
    most = loss(middle) + Z_95**2 / 2 * (1 + 2 / (weight * len(won)))
    low = _root(lambda theta: most - loss(theta), -FARTHEST, middle)
    high = _root(lambda theta: loss(theta) - most, middle, FARTHEST)
    return float(1 / (1 + np.exp(-low))), float(1 / (1 + np.exp(-high)))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Return where a rising function is zero, by bisection; the nearer end if that is outside."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
