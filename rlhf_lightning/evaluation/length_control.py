"""A win rate as it would be if both policies' answers were equally long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.evaluation.win_rate import WinRate

Numbers = NDArray[np.float64]

RIDGE = 0.01  # on both coefficients: keeps them finite if one policy wins every comparison
RESAMPLES = 500


def length_controlled_win_rate(
    outcomes: Sequence[float],
    lengths: Sequence[float],
    baseline_lengths: Sequence[float],
    samples_per_prompt: int = 1,
    seed: int = 0,
) -> WinRate:
    """Return the win rate that a logistic regression predicts at equal lengths, with a bootstrap interval over prompts.

        P(win) = sigmoid(theta + phi tanh(d / s)),    d = length - baseline's,  s = root mean square of d;
        rate   = sigmoid(theta)

    Judges prefer longer answers; a policy that only writes more has theta near 0. A policy whose answers are all longer
    by the same amount cannot be distinguished from a better one: the interval is then wide.

    Args:
        outcomes: 1 for a win, 0.5 for a tie, 0 for a loss, in prompt-major order.
        lengths, baseline_lengths: of the answers that were compared, in any unit.
        samples_per_prompt: number of adjacent entries that answer the same prompt and are drawn together.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the arguments have different lengths.

    Source: Dubois et al. 2024, "Length-controlled AlpacaEval", equation 1, without the instruction terms.

    >>> length_controlled_win_rate([1, 0, 1, 0], [5, 5, 5, 5], [5, 5, 5, 5]).rate
    0.5
    """
    won = np.asarray(outcomes, dtype=float)
    difference = np.asarray(lengths, dtype=float) - np.asarray(baseline_lengths, dtype=float)
    if won.shape != difference.shape:
        raise ValueError(f"{len(won)} outcomes of {len(difference)} pairs of lengths; there must be one for each")
    scale = float(np.sqrt(np.mean(difference**2))) or 1.0
    longer = np.tanh(difference / scale)
    groups = np.arange(len(won)).reshape(-1, samples_per_prompt)
    generator = np.random.default_rng([seed, len(won)])
    drawn = [groups[generator.integers(len(groups), size=len(groups))].ravel() for _ in range(RESAMPLES)]
    rates = [_at_equal_lengths(won[rows], longer[rows]) for rows in drawn]
    low, high = np.quantile(rates, [0.025, 0.975])
    return WinRate(_at_equal_lengths(won, longer), float(low), float(high))


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
