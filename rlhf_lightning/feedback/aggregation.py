"""Aggregating the votes of several labelers into one verdict per pair.

`majority` counts votes. `dawid_skene` learns from the choices alone how often each labeler gives each label for each
true class (Dawid and Skene 1979). `bradley_terry` gives each response a score and each labeler a reliability (Chen et
al. 2013). With every method, a pair that more than half of its labelers call a tie, or neither, is a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.votes import FIRST, SECOND, TIE, Votes

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

QUADRATURE = 5  # nodes of Gauss and Hermite's quadrature over a difference of two scores


@dataclass(frozen=True)
class Decisions:
    """One row per compared pair, in the order of tasks; columns as in `Votes`.

    `probability` is the probability that the first is better, 0.5 for a tie; `share` is the share of votes that agree
    with the decision; `margin` is the mean strength in its favour, where a tie counts 0 and a vote against it is
    negative.
    """

    tasks: list[str]
    task: Numbers
    first: Numbers
    second: Numbers
    probability: Array
    share: Array
    margin: Array
    count: Numbers

    def __len__(self) -> int:
        return len(self.task)


@dataclass(frozen=True)
class DawidSkene:
    """The result of EM.

    Args:
        posterior: `[items, classes]`.
        prior: `[classes]`.
        confusion: `[labelers, classes, labels]`: how often a labeler gives a label to items of a class.
        log_likelihood: log-likelihood of the labels.
    """

    posterior: Array
    prior: Array
    confusion: Array
    log_likelihood: float


def dawid_skene(
    item: Numbers,
    labeler: Numbers,
    label: Numbers,
    first_guess: Any = None,
    smoothing: float = 0.01,
    steps: int = 500,
    tolerance: float = 1e-9,
) -> DawidSkene:
    """Return the maximum-likelihood fit of Dawid and Skene (1979, equations 2.3 to 2.5), by EM from the vote shares.

    Args:
        item: `[votes]`, what was labelled, counted from 0; the next two likewise.
        labeler: `[votes]`, who labelled it.
        label: `[votes]`, the label given.
        first_guess: `[labels, classes]`: the classes that a label supports; None: the class with the same number.
        smoothing: votes added to each cell of a labeler's table, for labelers with few labels.
        steps: the most EM steps.
        tolerance: stop once the log-likelihood per item gains less than this.
    """
    guess = np.eye(int(label.max()) + 1) if first_guess is None else np.asarray(first_guess, dtype=np.float64)
    items, labelers, (labels, classes) = int(item.max()) + 1, int(labeler.max()) + 1, guess.shape
    posterior = np.zeros((items, classes))
    np.add.at(posterior, item, guess[label])
    posterior /= posterior.sum(1, keepdims=True)
    former = -np.inf
    cell = labeler * labels + label
    for _ in range(max(1, steps)):
        prior = posterior.mean(0)
        by_class = [np.bincount(cell, posterior[item, k], labelers * labels) for k in range(classes)]
        counts = np.stack(by_class, 1).reshape(labelers, labels, classes).swapaxes(1, 2).astype(np.float64) + smoothing
        total = counts.sum(2, keepdims=True)
        confusion = np.divide(counts, total, out=np.full_like(counts, 1.0 / labels), where=total > 0)
        with np.errstate(divide="ignore"):
            log_prior, log_confusion = np.log(prior), np.log(confusion)
        joint = np.stack(
            [log_prior[k] + np.bincount(item, log_confusion[labeler, k, label], items) for k in range(classes)], 1
        )
        peak = joint.max(1, keepdims=True)
        weights = np.exp(joint - peak)
        norm = weights.sum(1, keepdims=True)
        posterior = weights / norm
        likelihood = float((peak + np.log(norm)).sum())
        if likelihood - former < tolerance * items:
            break
        former = likelihood
    return DawidSkene(posterior, prior, confusion, likelihood)


@dataclass(frozen=True)
class BradleyTerry:
    """Scores of responses and reliabilities of labelers.

    Args:
        scores: `[responses]`, by response number.
        reliability: `[labelers]`: the probability of voting for the better response, in (0, 1); 0.5 is a coin flip.
    """

    scores: Array
    reliability: Array


def bradley_terry(
    first: Numbers, second: Numbers, labeler: Numbers, outcome: Numbers, spread: float = 2.0, steps: int = 1000
) -> BradleyTerry:
    """Return Bradley-Terry scores with a reliability per labeler (CrowdBT: Chen et al. 2013, equation 6).

        P(labeler l prefers i to j) = r_l sigma(s_i - s_j) + (1 - r_l) sigma(s_j - s_i)

    With s ~ N(0, spread^2) and logit r ~ N(2, 1): labelers are taken to be mostly right until their votes say
    otherwise. The scores' posterior is approximated by independent normals, q(s_i) = N(m_i, v_i), by maximising

        sum over votes of E_q[log P] - KL(q || prior) + log p(logit r)

    (Blei et al. 2017, equation 13). Where a response gets few votes, as in a task that three labelers answer, single
    best scores would fit each labeler's mistakes, and all of them would look reliable. A tie counts half for each.

    Args:
        first: `[votes]`, one of the two responses, counted from 0; the next two likewise.
        second: `[votes]`, the other response.
        labeler: `[votes]`, who compared them.
        outcome: `[votes]`, 0 if the first is better, 1 for the second, 2 for a tie.
        spread: the standard deviation of scores.
        steps: the most L-BFGS steps.
    """
    import torch

    i, j, who, said = (torch.from_numpy(np.ascontiguousarray(x)) for x in (first, second, labeler, outcome))
    wins = torch.where(said == FIRST, 1.0, torch.where(said == SECOND, 0.0, 0.5)).double()
    means = torch.zeros(int(max(first.max(), second.max())) + 1, dtype=torch.float64, requires_grad=True)
    widths = torch.full_like(means, np.log(spread), requires_grad=True)  # the logarithm of q's standard deviation
    logits = torch.full((int(labeler.max()) + 1,), 2.0, dtype=torch.float64, requires_grad=True)
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(QUADRATURE))
    optimizer = torch.optim.LBFGS(
        [means, widths, logits], max_iter=steps, history_size=50, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        variance = (2 * widths).exp()
        deviation, reliability = (variance[i] + variance[j]).sqrt(), torch.sigmoid(logits[who])
        fit = torch.zeros((), dtype=torch.float64)
        for node, weight in zip(nodes, weights / weights.sum(), strict=True):
            seen = torch.sigmoid(means[i] - means[j] + node * deviation)
            prefers = reliability * seen + (1 - reliability) * (1 - seen)
            fit = fit + weight * (wins * prefers.log() + (1 - wins) * (1 - prefers).log()).sum()
        divergence = ((means.square() + variance) / spread**2).sum() / 2 - widths.sum()
        value = divergence + (logits - 2.0).square().sum() / 2 - fit
        value.backward()
        return value

    optimizer.step(loss)
    return BradleyTerry(means.detach().numpy(), torch.sigmoid(logits).detach().numpy())


def decide(votes: Votes, method: str = "majority") -> Decisions:
    """Return one decision per compared pair; repeated answers of a labeler do not count twice.

    A pair is a tie, with a probability of 0.5, if more than half of its labelers say so (or `neither`).

    Args:
        votes: votes of all labelers.
        method: `majority`, `dawid_skene` or `bradley_terry`.

    Raises:
        UserError: unknown method.
    """
    if method not in METHODS:
        raise UserError(f"aggregation: unknown method {method!r}; choose one of {', '.join(METHODS)}")
    votes = votes.where(~votes.repeat)
    rows, unit = votes.units()
    count = np.bincount(unit, minlength=len(rows))
    probability = METHODS[method](votes, unit) if len(votes) else np.zeros(0)
    probability[2 * np.bincount(unit, votes.outcome == TIE, len(rows)) > count] = 0.5
    direction = np.select([votes.outcome == FIRST, votes.outcome == SECOND], [1.0, -1.0], 0.0)
    sign = np.sign(np.round(probability - 0.5, 9))
    mine = sign[unit]
    agrees = (direction == mine).astype(np.float64)
    return Decisions(
        votes.tasks,
        votes.task[rows],
        votes.first[rows],
        votes.second[rows],
        probability,
        np.bincount(unit, agrees, len(rows)) / np.maximum(count, 1),
        np.bincount(unit, direction * votes.strength * mine, len(rows)) / np.maximum(count, 1),
        count,
    )


def reliabilities(votes: Votes, method: str = "dawid_skene") -> dict[str, float]:
    """Return how often each labeler is right, by `dawid_skene` (the mean of both classes) or by `bradley_terry`.

    `dawid_skene` knows a labeler by the choices: whoever only said tie or neither is left out.
    """
    votes = votes.where(~votes.repeat if method == "bradley_terry" else ~votes.repeat & (votes.outcome != TIE))
    if not len(votes):
        return {}
    if method == "bradley_terry":
        found: Array = _fit_bradley_terry(votes)[0].reliability
    else:
        confusion = _fit_dawid_skene(votes).confusion
        found = (confusion[:, 0, FIRST] + confusion[:, 1, SECOND] + confusion[:, :, TIE].sum(1) / 2) / 2
    return {votes.labelers[i]: float(found[i]) for i in np.unique(votes.labeler)}


def _by_majority(votes: Votes, unit: Numbers) -> Array:
    points = np.select([votes.outcome == FIRST, votes.outcome == SECOND], [1.0, 0.0], 0.5)
    return np.bincount(unit, points) / np.bincount(unit)


def _by_dawid_skene(votes: Votes, unit: Numbers) -> Array:
    probability = np.full(int(unit.max()) + 1, 0.5)
    chose = votes.outcome != TIE
    if chose.any():
        probability[np.unique(unit[chose])] = _fit_dawid_skene(votes.where(chose)).posterior[:, 0]
    return probability


def _fit_dawid_skene(choices: Votes) -> DawidSkene:
    """Fit two classes to the choices, without the ties.

    A tie does not say which class a pair has. Fitted as a label, ties take over the class in which they are more
    frequent, and the choices there are then taken for mistakes.
    """
    return dawid_skene(choices.units()[1], choices.labeler, choices.outcome, [[1, 0], [0, 1], [0.5, 0.5]])


def _by_bradley_terry(votes: Votes, unit: Numbers) -> Array:
    fit, first, second = _fit_bradley_terry(votes)
    probability = np.empty(int(unit.max()) + 1)
    probability[unit] = 0.5 * (1 + np.tanh(0.5 * (fit.scores[first] - fit.scores[second])))
    return probability


def _fit_bradley_terry(votes: Votes) -> tuple[BradleyTerry, Numbers, Numbers]:
    keys = np.concatenate([votes.task * 4096 + votes.first, votes.task * 4096 + votes.second])
    numbers = np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64)
    first, second = numbers[: len(votes)], numbers[len(votes) :]
    return bradley_terry(first, second, votes.labeler, votes.outcome), first, second


METHODS: Mapping[str, Callable[[Votes, Numbers], Array]] = {
    "majority": _by_majority,
    "dawid_skene": _by_dawid_skene,
    "bradley_terry": _by_bradley_terry,
}
