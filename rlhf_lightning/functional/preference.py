"""Losses that learn a policy from pairs of answers directly: DPO and its relatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, check_positive, check_probability, check_shapes

LOSS_TYPES = ("sigmoid", "ipo", "hinge")
SMOOTHED = ("sigmoid",)  # those that `label_smoothing` is a part of


def implicit_rewards(policy_logps: Tensor, reference_logps: Tensor, beta: float = 0.1) -> Tensor:
    r"""The reward a policy stands for, up to a constant of the prompt: $\beta \log(\pi(y|x) / \pi_{ref}(y|x))$.

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


def answer_logps(sums: Tensor, lengths: Tensor, loss_type: str = "sigmoid") -> Tensor:
    r"""Log-probability of each answer in the unit in which `dpo_loss` takes it for this loss.

    The sum over the answer's tokens for `sigmoid` and `hinge`. For `ipo` the mean per token: its loss pulls the
    log-ratio to $1/(2\beta)$ whatever the answer's length, so with sums the tokens of a long answer would be moved less
    than those of a short one. This is how IPO's authors and TRL compute it.

    Args:
        sums: [B], log-probability of each answer, summed over its tokens, nats.
        lengths: [B], the answer's tokens.
        loss_type: `sigmoid`, `ipo` or `hinge`.

    Returns:
        [B] in at least float32: nats, for `ipo` nats per token. An answer without a token has 0.

    Raises:
        ValueError: the two are not both [B]; `loss_type` is unknown.

    >>> sums, lengths = torch.tensor([-4.0, -3.0]), torch.tensor([2, 1])
    >>> answer_logps(sums, lengths), answer_logps(sums, lengths, "ipo")
    (tensor([-4., -3.]), tensor([-2., -3.]))
    """
    check_shapes(1, sums=sums, lengths=lengths)
    _check_loss_type(loss_type)
    return at_least_float32(sums) / lengths.clamp(min=1) if loss_type == "ipo" else at_least_float32(sums)


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
    loss_type: str = "sigmoid",
) -> Tensor:
    r"""Loss of each pair, a function of

    $h = \log\frac{\pi(y_c)}{\pi_{ref}(y_c)} - \log\frac{\pi(y_r)}{\pi_{ref}(y_r)}$:

    - `sigmoid`: $-(1 - \epsilon) \log \sigma(\beta h) - \epsilon \log \sigma(-\beta h)$. Rafailov et al. 2023
      (arXiv:2305.18290), eq. 7; with $\epsilon$ > 0 conservative DPO (Mitchell 2023, "A note on DPO with noisy
      preferences"). Least at $\beta h = \mathrm{logit}(1-\epsilon)$.
    - `ipo`: $(h - 1/(2\beta))^2$. Azar et al. 2023 (arXiv:2310.12036), eq. 17, on log-probabilities per token.
    - `hinge`: $\max(0, 1 - \beta h)$. SLiC (Zhao et al. 2023, arXiv:2305.10425), on the log-ratio as in Liu et al.
      2023 (arXiv:2309.06657).

    Args:
        policy_chosen_logps: [B], taken as given. The unit is that of `answer_logps`: nats per answer, for `ipo` nats
            per token.
        policy_rejected_logps: [B].
        reference_chosen_logps: [B].
        reference_rejected_logps: [B].
        beta: the KL coefficient of the objective the loss stands for.
        label_smoothing: $\epsilon$, the probability that the label is flipped: a float, or [B] for soft labels. Of
            `sigmoid` only: the other losses have none.
        loss_type: `sigmoid`, `ipo` or `hinge`.

    Returns:
        [B], in at least float32.

    Raises:
        ValueError: the tensors are not all [B]; `beta` is not above 0; a float `label_smoothing` is outside [0, 1], or
            is given to a loss that has none; `loss_type` is unknown.

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
    _check_loss_type(loss_type)
    if loss_type not in SMOOTHED and (isinstance(label_smoothing, Tensor) or label_smoothing != 0):
        raise ValueError(f"`label_smoothing` is given, but loss_type={loss_type!r} has none; expected 0")
    if isinstance(label_smoothing, Tensor):
        check_shapes(1, policy_chosen_logps=policy_chosen_logps, label_smoothing=label_smoothing)
        label_smoothing = at_least_float32(label_smoothing)
    else:
        check_probability(label_smoothing=label_smoothing)
    chosen_logratio = at_least_float32(policy_chosen_logps) - at_least_float32(reference_chosen_logps)
    rejected_logratio = at_least_float32(policy_rejected_logps) - at_least_float32(reference_rejected_logps)
    h = chosen_logratio - rejected_logratio
    if loss_type == "ipo":
        return (h - 1 / (2 * beta)).square()
    if loss_type == "hinge":
        return torch.relu(1 - beta * h)
    return (1 - label_smoothing) * -F.logsigmoid(beta * h) + label_smoothing * -F.logsigmoid(-beta * h)


def _check_loss_type(loss_type: str) -> None:
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"`loss_type` is {loss_type!r}; expected one of {', '.join(LOSS_TYPES)}")
