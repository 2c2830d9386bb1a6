"""Losses that train a policy directly on pairs of answers: DPO and its relatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.functional._arguments import (
    at_least_float32,
    check_choice,
    check_positive,
    check_probability,
    check_shapes,
)

LOSS_TYPES = ("sigmoid", "ipo", "hinge", "robust", "exo_pair", "nca_pair", "sppo_hard", "apo_zero", "apo_down")
SMOOTHED = ("sigmoid", "robust", "exo_pair")  # losses that use `label_smoothing`
PER_TOKEN = ("ipo",)  # losses that compare means over tokens
EXO_SMOOTHING = 1e-3  # used by `exo_pair` if 0 is given: its target needs some probability on both answers


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float = 0.1) -> Tensor:
    r"""Return a policy's implicit reward, up to a constant per prompt: $\beta \log(\pi(y|x) / \pi_{ref}(y|x))$.

    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 5.

    Args:
        policy_logps: [B], sums over the answer's tokens, nats.
        reference_logps: [B], the same under the reference.
        beta: reward per nat.

    Returns:
        [B] in at least float32.

    Raises:
        ValueError: the two are not both [B], or `beta` is not above 0.

    >>> implicit_rewards(torch.tensor([-4.0]), torch.tensor([-6.0]), beta=0.5)
    tensor([1.])
    """
    check_shapes(1, policy_logps=policy_logps, reference_logps=reference_logps)
    check_positive(beta=beta)
    return beta * (at_least_float32(policy_logps) - at_least_float32(reference_logps))


def answer_logps(sums: Tensor, lengths: Tensor, loss_type: str = "sigmoid", per_token: bool | None = None) -> Tensor:
    r"""Return the log-probability of each answer in the unit that `dpo_loss` uses for this loss.

    This is the sum over the answer's tokens, except for `ipo`, where it is the mean per token: its loss pulls the
    log-ratio to $1/(2\beta)$ whatever the answer's length, so sums would move the tokens of a long answer less than
    those of a short one. IPO's authors and TRL compute it this way.

    Args:
        sums: [B], log-probability of each answer, summed over its tokens, nats.
        lengths: [B], number of tokens of each answer.
        loss_type: one of `dpo_loss`'s.
        per_token: means (True) or sums (False), whatever the loss; None: the loss's own unit.

    Returns:
        [B] in at least float32: nats, for `ipo` nats per token. An answer without tokens has 0.

    Raises:
        ValueError: the two are not both [B]; `loss_type` is unknown.

    >>> sums, lengths = torch.tensor([-4.0, -3.0]), torch.tensor([2, 1])
    >>> answer_logps(sums, lengths), answer_logps(sums, lengths, "ipo")
    (tensor([-4., -3.]), tensor([-2., -3.]))
    """
    check_shapes(1, sums=sums, lengths=lengths)
    check_choice(loss_type=(loss_type, LOSS_TYPES))
    means = loss_type in PER_TOKEN if per_token is None else per_token
    return at_least_float32(sums) / lengths.clamp(min=1) if means else at_least_float32(sums)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
    loss_type: str = "sigmoid",
) -> Tensor:
    r"""Return the loss of each pair.

    Most losses are a function of the difference of log-ratios

    $h = \log\frac{\pi(y_c)}{\pi_{ref}(y_c)} - \log\frac{\pi(y_r)}{\pi_{ref}(y_r)}$:

    - `sigmoid`: $-(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h)$. Rafailov et al. 2023
      (arXiv:2305.18290), eq. 7; with $\epsilon$ > 0 conservative DPO (Mitchell 2023, "A note on DPO with noisy
      preferences"). Minimal at $\beta h = \mathrm{logit}(1-\epsilon)$.
    - `ipo`: $(h - 1/(2\beta))^2$. Azar et al. 2023 (arXiv:2310.12036), eq. 17, on log-probabilities per token.
    - `hinge`: $\max(0, 1 - \beta h)$. SLiC (Zhao et al. 2023, arXiv:2305.10425), on the log-ratio as in Liu et al.
      2023 (arXiv:2309.06657).
    - `robust`: $\frac{-(1 - \epsilon) \log \sigma(\beta h) + \epsilon \log \sigma(-\beta h)}{1 - 2\epsilon}$, whose
      expectation over labels flipped with probability $\epsilon$ < 1/2 is the loss of the true labels. Chowdhury et al.
      2024 (arXiv:2403.00409), eq. 12.
    - `exo_pair`: KL of $(\sigma(\beta h), \sigma(-\beta h))$ to the labels $(1 - \epsilon, \epsilon)$. Ji et al. 2024
      (arXiv:2402.00856), eq. 16; 0 means $\epsilon = 10^{-3}$.

    The others are functions of the two rewards $r_c, r_r$, which are $\beta$ times the two log-ratios in h:

    - `nca_pair`: $-\log \sigma(r_c) - \frac12 \log \sigma(-r_c) - \frac12 \log \sigma(-r_r)$. Chen et al. 2024
      (arXiv:2402.05369), for two answers with rewards 1 and 0.
    - `sppo_hard`: $(\frac{r_c}{\beta} - \frac{1}{2\beta})^2 + (\frac{r_r}{\beta} + \frac{1}{2\beta})^2$. Wu et al. 2024
      (arXiv:2405.00675), eq. 4.8, with win probabilities 1 and 0.
    - `apo_zero`: $1 - \sigma(r_c) + \sigma(r_r)$: the chosen answer becomes more probable, the rejected one less.
      D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 3.
    - `apo_down`: $\sigma(r_c) + 1 - \sigma(r_c - r_r)$: both become less probable, the rejected one more so. Same
      paper, eq. 4.

    Args:
        policy_chosen_logps: [B], in the unit of `answer_logps`: nats per answer, for `ipo` nats per token.
        policy_rejected_logps: [B].
        reference_chosen_logps: [B].
        reference_rejected_logps: [B].
        beta: the KL coefficient of the underlying objective.
        label_smoothing: $\epsilon$, the probability that the label is flipped: a float, or [B] for soft labels. Only
            for `sigmoid`, `robust` and `exo_pair`.
        loss_type: one of the above.

    Returns:
        [B], in at least float32.

    Raises:
        ValueError: the tensors are not all [B]; `beta` is not above 0; a float `label_smoothing` is outside [0, 1], is
            given to a loss without it, or is not below 1/2 for `robust`; `loss_type` is unknown.

    >>> chosen, rejected, reference = torch.tensor([-4.0]), torch.tensor([-6.0]), torch.tensor([-5.0])
    >>> dpo_loss(chosen, rejected, reference, reference, beta=0.5)  # log(1 + exp(-1))
    tensor([0.3133])
    >>> dpo_loss(chosen, rejected, reference, reference, beta=0.5, label_smoothing=0.1)
    tensor([0.4133])
    >>> dpo_loss(chosen, rejected, reference, reference, beta=0.25, loss_type="ipo")
    tensor([0.])
    """
    check_shapes(
        1,
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    check_positive(beta=beta)
    check_choice(loss_type=(loss_type, LOSS_TYPES))
    smoothing = _checked_smoothing(policy_chosen_logps, label_smoothing, loss_type)
    chosen_logratio = at_least_float32(policy_chosen_logps) - at_least_float32(reference_chosen_logps)
    rejected_logratio = at_least_float32(policy_rejected_logps) - at_least_float32(reference_rejected_logps)
    h = chosen_logratio - rejected_logratio
    if loss_type == "ipo":
        return (h - 1 / (2 * beta)).square()
    if loss_type == "hinge":
        return torch.relu(1 - beta * h)
    if loss_type == "sppo_hard":
        return (chosen_logratio - 1 / (2 * beta)).square() + (rejected_logratio + 1 / (2 * beta)).square()
    if loss_type in ("nca_pair", "apo_zero", "apo_down"):
        return _loss_of_rewards(loss_type, beta * chosen_logratio, beta * rejected_logratio)
    right, wrong = -F.logsigmoid(beta * h), -F.logsigmoid(-beta * h)
    if loss_type == "robust":
        return ((1 - smoothing) * right - smoothing * wrong) / (1 - 2 * smoothing)
    if loss_type == "exo_pair":
        target = torch.as_tensor(smoothing, dtype=h.dtype, device=h.device)
        target = torch.where(target == 0, torch.full_like(target, EXO_SMOOTHING), target)
        of_right = torch.sigmoid(beta * h) * (-right - torch.log1p(-target))
        return of_right + torch.sigmoid(-beta * h) * (-wrong - torch.log(target))
    return (1 - smoothing) * right + smoothing * wrong


def _loss_of_rewards(loss_type: str, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the losses that depend on each answer's own reward, [B]."""
    if loss_type == "nca_pair":
        return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)
    if loss_type == "apo_zero":
        return torch.sigmoid(-chosen) + torch.sigmoid(rejected)  # 1 - sigmoid(x) = sigmoid(-x), without cancellation
    return torch.sigmoid(chosen) + torch.sigmoid(rejected - chosen)


def _checked_smoothing(like: Tensor, label_smoothing: float | Tensor, loss_type: str) -> float | Tensor:
    """Return the probability that a label is flipped, if the loss uses one."""
    if loss_type not in SMOOTHED and (isinstance(label_smoothing, Tensor) or label_smoothing != 0):
        raise ValueError(f"`label_smoothing` is given, but loss_type={loss_type!r} has none; expected 0")
    if isinstance(label_smoothing, Tensor):
        check_shapes(1, policy_chosen_logps=like, label_smoothing=label_smoothing)
        return at_least_float32(label_smoothing)
    check_probability(label_smoothing=label_smoothing)
    if loss_type == "robust" and label_smoothing >= 0.5:
        raise ValueError(f"`label_smoothing` is {label_smoothing}; expected below 0.5 for loss_type='robust'")
    return label_smoothing
