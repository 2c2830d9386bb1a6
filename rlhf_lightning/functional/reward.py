"""Losses and metrics of a reward model trained on comparisons of answers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.functional._arguments import (
    at_least_float32,
    blank,
    check_integers,
    check_positive,
    check_shapes,
    divide,
)


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor, margin: Tensor | None = None) -> Tensor:
    r"""Return the negative log-likelihood of the choices: $-\frac1M \sum \log \sigma(s_c - s_r - m)$.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1 for K = 2; the margin: Touvron et al. 2023 (arXiv:2307.09288),
    eq. 2. The choice model is by Bradley and Terry 1952.

    Args:
        chosen_scores: [M], scores of the better answers.
        rejected_scores: [M], scores of the worse ones.
        margin: [M], m, in units of the score; 0 if None.

    Returns:
        The mean, a scalar in nats, at least float32; 0 without pairs.

    Raises:
        ValueError: the tensors are not all [M].

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([0.0]))  # log(1 + exp(-1))
    tensor(0.3133)
    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([0.0]), margin=torch.tensor([1.0]))  # log 2
    tensor(0.6931)
    """
    check_shapes(1, chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    difference = at_least_float32(chosen_scores) - at_least_float32(rejected_scores)
    if margin is not None:
        check_shapes(1, chosen_scores=chosen_scores, margin=margin)
        difference = difference - at_least_float32(margin)
    return -F.logsigmoid(difference).sum() / max(len(difference), 1)


def ranked_preference_loss(
    scores: Tensor,
    pairs: Tensor,
    pair_weights: Tensor,
    margin: Tensor | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    r"""Return the Bradley-Terry loss of ranked lists: $-\frac1D \sum_j w_j \log \sigma(s_{b_j} - s_{w_j} - m_j)$.

    Source: Ouyang et al. 2022 (arXiv:2203.02155), eq. 1, with $w_j = 1 / \binom K2$ for the pairs of a prompt with K
    answers, so that every prompt counts once and every answer is scored once.

    Args:
        scores: [N], one per answer.
        pairs: [M, 2], indices into `scores` of the better and of the worse answer. Ties form no pair.
        pair_weights: [M]; a pair of weight 0 is padding and is not read.
        margin: [M], in units of the score; 0 if None.
        denominator: D; None: the sum of the weights, which is the number of prompts.

    Returns:
        A scalar in nats, at least float32; 0 without pairs.

    Raises:
        ValueError: `scores` is not [N], `pairs` not [M, 2] integers, `pair_weights` or `margin` not [M]; a float
            `denominator` is not above 0.

    >>> pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])  # one prompt, three answers, best first
    >>> ranked_preference_loss(torch.tensor([2.0, 1.0, 0.0]), pairs, torch.full((3,), 1 / 3))
    tensor(0.2512)
    """
    better, worse, valid = _pair_scores(scores, pairs, pair_weights)
    difference = better - worse
    if margin is not None:
        check_shapes(1, pair_weights=pair_weights, margin=margin)
        difference = difference - blank(margin, valid)
    weights = at_least_float32(pair_weights)
    return divide(-(weights * F.logsigmoid(difference)).sum(), denominator, default=weights.sum())


def centering_penalty(
    scores: Tensor, pairs: Tensor, pair_weights: Tensor, *, denominator: Tensor | float | None = None
) -> Tensor:
    r"""Return a penalty that keeps scores around 0: $\frac1D \sum_j w_j (s_{b_j} + s_{w_j})^2$.

    Source: Eisenstein et al. 2023 (arXiv:2312.09244), eq. 2; added to the loss with a small coefficient (0.01 in the
    paper). Comparisons alone leave the mean score open.

    Args:
        scores: [N], one per answer.
        pairs: [M, 2], as in `ranked_preference_loss`.
        pair_weights: [M], as in `ranked_preference_loss`.
        denominator: D, as in `ranked_preference_loss`.

    Returns:
        A scalar in squared units of the score, at least float32; 0 without pairs.

    Raises:
        ValueError: as in `ranked_preference_loss`.

    >>> centering_penalty(torch.tensor([2.0, 1.0]), torch.tensor([[0, 1]]), torch.tensor([1.0]))
    tensor(9.)
    """
    better, worse, _ = _pair_scores(scores, pairs, pair_weights)
    weights = at_least_float32(pair_weights)
    return divide((weights * (better + worse).square()).sum(), denominator, default=weights.sum())


def cost_model_loss(
    safer_costs: Tensor,
    worse_costs: Tensor,
    safer_is_safe: Tensor,
    worse_is_safe: Tensor,
    pair_weights: Tensor | None = None,
    *,
    denominator: Tensor | float | None = None,
) -> Tensor:
    r"""Return the loss of a cost model: $-\log\sigma(c_w - c_s) - \log\sigma(s_w c_w) - \log\sigma(s_s c_s)$ per pair.

    $c_s$ and $c_w$ are the costs of the safer and of the worse answer, and a sign $s$ is +1 for an unsafe answer and -1
    for a safe one: besides ranking the two, the last two terms move unsafe answers above 0 and safe ones below. Without
    them 0 would mean nothing, since comparisons leave a constant open. Source: Dai et al. 2023 (arXiv:2310.12773),
    section 3.2, the objective of the cost model.

    Args:
        safer_costs: [M], costs of the safer answers.
        worse_costs: [M], costs of the other ones.
        safer_is_safe: [M] bool, whether the safer answer is safe.
        worse_is_safe: [M] bool, whether the worse answer is.
        pair_weights: [M]; a pair of weight 0 is padding and is not read; None: 1 for each.
        denominator: divisor of the weighted sum; None: the sum of the weights.

    Returns:
        A scalar in nats, at least float32; 0 without pairs.

    Raises:
        ValueError: the tensors are not all [M]; a float `denominator` is not above 0.

    >>> safe, unsafe = torch.tensor([True]), torch.tensor([False])
    >>> cost_model_loss(torch.tensor([-2.0]), torch.tensor([2.0]), safe, unsafe)
    tensor(0.2720)
    >>> cost_model_loss(torch.tensor([1.0]), torch.tensor([5.0]), safe, unsafe)  # ranked, and on the wrong side of 0
    tensor(1.3381)
    """
    check_shapes(1, safer_costs=safer_costs, worse_costs=worse_costs)
    check_shapes(1, safer_costs=safer_costs, safer_is_safe=safer_is_safe, worse_is_safe=worse_is_safe)
    weights = torch.ones_like(at_least_float32(safer_costs)) if pair_weights is None else at_least_float32(pair_weights)
    check_shapes(1, safer_costs=safer_costs, pair_weights=weights)
    safer, worse = (blank(costs, weights != 0) for costs in (safer_costs, worse_costs))
    signed = [torch.where(safe.bool(), -c, c) for c, safe in ((safer, safer_is_safe), (worse, worse_is_safe))]
    likely = F.logsigmoid(worse - safer) + F.logsigmoid(signed[0]) + F.logsigmoid(signed[1])
    return divide(-(weights * likely).sum(), denominator, default=weights.sum())


def preference_accuracy(chosen_scores: Tensor, rejected_scores: Tensor) -> Tensor:
    r"""Return the share of pairs whose chosen answer scores higher; a tie counts one half.

    Args:
        chosen_scores: [M].
        rejected_scores: [M].

    Returns:
        A scalar from 0 to 1, at least float32; 0 without pairs. A pair with a NaN score counts as wrong.

    Raises:
        ValueError: the two are not both [M].

    >>> preference_accuracy(torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([0.0, 2.0, 1.0, 0.0]))
    tensor(0.6250)
    """
    check_shapes(1, chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    difference = at_least_float32(chosen_scores) - at_least_float32(rejected_scores)
    return torch.heaviside(difference, difference.new_full((), 0.5)).sum() / max(len(difference), 1)


def calibration_error(probabilities: Tensor, outcomes: Tensor, bins: int = 10) -> Tensor:
    r"""Return the expected calibration error: $\sum_b \frac{n_b}{M} |\bar o_b - \bar p_b|$ over equal-width bins.

    Source: Guo et al. 2017 (arXiv:1706.04599), eq. 3. For pairs (chosen, rejected) every outcome would be 1, which
    carries no information: pass $\max(p, 1 - p)$ with $p = \sigma(s_c - s_r)$, and whether p > 1/2.

    Args:
        probabilities: [M], predicted, from 0 to 1.
        outcomes: [M], 1 (or True) where it happened, else 0.
        bins: number of bins.

    Returns:
        A scalar from 0 to 1, at least float32; 0 without predictions.

    Raises:
        ValueError: the two are not both [M], or `bins` is not above 0.

    >>> calibration_error(torch.tensor([0.75, 0.75, 0.75, 0.75]), torch.tensor([1, 1, 0, 0]))
    tensor(0.2500)
    """
    check_shapes(1, probabilities=probabilities, outcomes=outcomes)
    check_positive(bins=bins)
    probabilities = at_least_float32(probabilities)
    index = (probabilities * bins).long().clamp(0, bins - 1)
    excess = probabilities.new_zeros(bins).index_add(0, index, at_least_float32(outcomes) - probabilities)
    return excess.abs().sum() / max(len(index), 1)


def _pair_scores(scores: Tensor, pairs: Tensor, pair_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scores of the better and of the worse answers [M], and which pairs count [M]."""
    if scores.ndim != 1:
        raise ValueError(f"`scores` has shape {list(scores.shape)}; expected [N]")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"`pairs` has shape {list(pairs.shape)}; expected [M, 2]")
    check_integers(pairs=pairs)
    if pair_weights.shape != pairs.shape[:1]:
        raise ValueError(
            f"`pair_weights` has shape {list(pair_weights.shape)}; expected {list(pairs.shape[:1])}, "
            "one per row of `pairs`"
        )
    valid = pair_weights != 0
    better, worse = (blank(scores[pairs[:, side]], valid) for side in (0, 1))
    return better, worse, valid
