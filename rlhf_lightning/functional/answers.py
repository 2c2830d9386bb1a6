"""Losses of single desirable or undesirable answers, and of answers compared without a reference."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, check_positive, check_shapes


def kto_loss(
    log_ratios: Tensor,
    desirable: Tensor,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""Return the losses: $w_D (1 - \sigma(\beta (r - z)))$ if desirable, else $w_U (1 - \sigma(\beta (z - r)))$.

    $r = \log(\pi(y|x) / \pi_{ref}(y|x))$, and z estimates KL(policy || reference). Source: Ethayarajh et al. 2024
    (arXiv:2402.01306), eq. 8. If policy and reference agree (r = z = 0), each loss is half its weight.

    Args:
        log_ratios: [N], r, summed over the answer's tokens, in nats.
        desirable: [N], boolean.
        kl: z, a scalar in nats: the mean log-ratio of answers paired with other prompts. A negative estimate counts as
            0, and no gradient flows into it.
        beta: $\beta$, how quickly a loss saturates, per nat.
        desirable_weight: $w_D$.
        undesirable_weight: $w_U$.

    Returns:
        [N] in at least float32, each from 0 to its weight.

    Raises:
        ValueError: the two are not both [N]; `desirable` is not boolean; `kl` is not a scalar; `beta` or a weight is
            not above 0.

    >>> kto_loss(torch.tensor([0.0, 0.0]), torch.tensor([True, False]), kl=0.0)
    tensor([0.5000, 0.5000])
    >>> kto_loss(torch.tensor([10.0, 10.0]), torch.tensor([True, False]), kl=0.0, beta=1.0).round(decimals=4)
    tensor([0., 1.])
    """
    check_shapes(1, log_ratios=log_ratios, desirable=desirable)
    check_positive(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if desirable.dtype != torch.bool:
        raise ValueError(f"`desirable` has dtype {desirable.dtype}; expected torch.bool")
    log_ratios = at_least_float32(log_ratios)
    z = torch.as_tensor(kl, dtype=log_ratios.dtype, device=log_ratios.device).detach()
    if z.ndim:
        raise ValueError(f"`kl` has shape {list(z.shape)}; expected a scalar")
    distance = beta * (log_ratios - z.clamp(min=0))
    wanted = desirable_weight * torch.sigmoid(-distance)  # 1 - sigmoid(x) = sigmoid(-x), without cancellation
    return torch.where(desirable, wanted, undesirable_weight * torch.sigmoid(distance))


def odds_ratio_loss(chosen_mean_logps: Tensor, rejected_mean_logps: Tensor) -> Tensor:
    r"""Return each pair's loss: $-\log \sigma(o(m_c) - o(m_r))$ with the log-odds $o(m) = m - \log(1 - e^m)$.

    Source: ORPO, Hong et al. 2024 (arXiv:2403.07691), eq. 4 and 7.

    Args:
        chosen_mean_logps: [M], mean log-probability per token of the better answer, nats; at most 0.
        rejected_mean_logps: [M], the same of the worse answer.

    Returns:
        [M] in at least float32. At probability 1, which half precision can reach, the odds are those of the largest
        probability below 1, so that loss and gradient stay finite.

    Raises:
        ValueError: the two are not both [M].

    >>> odds_ratio_loss(torch.tensor([-1.0]), torch.tensor([-1.0]))  # log 2
    tensor([0.6931])
    >>> odds_ratio_loss(torch.tensor([-0.5, 0.0]), torch.tensor([-1.0, 0.0]))
    tensor([0.3203, 0.6931])
    """
    check_shapes(1, chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    return -F.logsigmoid(log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps))


def log_odds(mean_logps: Tensor) -> Tensor:
    r"""Return $\log(p / (1 - p))$ of $p = e^m$, by expm1 near p = 1 and log1p elsewhere, where each is exact.

    Source: Hong et al. 2024 (arXiv:2403.07691), eq. 4.

    Args:
        mean_logps: [M], mean log-probability per token, nats; at most 0.

    Returns:
        [M] in at least float32. At probability 1 the odds are those of the largest probability below 1.

    >>> log_odds(torch.tensor([-0.6931472]))  # of 1/2
    tensor([0.])
    """
    logps = at_least_float32(mean_logps)
    logps = logps.clamp(max=-torch.finfo(logps.dtype).eps)
    near = logps > -0.5
    log_rest = torch.where(
        near,
        torch.log(-torch.expm1(logps.masked_fill(~near, -0.5))),
        torch.log1p(-torch.exp(logps.masked_fill(near, -0.5))),
    )
    return logps - log_rest


def simpo_loss(
    chosen_mean_logps: Tensor, rejected_mean_logps: Tensor, beta: float = 2.0, gamma_beta_ratio: float = 0.25
) -> Tensor:
    r"""Return the losses: $-\log \sigma(\beta (m_c - m_r) - \gamma)$, with $\gamma = \beta \cdot$ `gamma_beta_ratio`.

    Source: SimPO, Meng et al. 2024 (arXiv:2405.14734), eq. 6. The margin is given relative to beta, because that is the
    required difference of mean log-probabilities.

    Args:
        chosen_mean_logps: [M], mean log-probability per token of the better answer, nats.
        rejected_mean_logps: [M], the same of the worse answer.
        beta: $\beta$, reward per nat per token (2 to 10 in the paper).
        gamma_beta_ratio: $\gamma / \beta$, in nats per token, at least 0.

    Returns:
        [M] in at least float32.

    Raises:
        ValueError: the two are not both [M]; `beta` is not above 0; `gamma_beta_ratio` is below 0.

    >>> simpo_loss(torch.tensor([-1.0]), torch.tensor([-1.25]))  # the margin exactly: log 2
    tensor([0.6931])
    """
    check_shapes(1, chosen_mean_logps=chosen_mean_logps, rejected_mean_logps=rejected_mean_logps)
    check_positive(beta=beta)
    if not gamma_beta_ratio >= 0:
        raise ValueError(f"`gamma_beta_ratio` is {gamma_beta_ratio}; expected a number of at least 0")
    difference = at_least_float32(chosen_mean_logps) - at_least_float32(rejected_mean_logps)
    return -F.logsigmoid(beta * (difference - gamma_beta_ratio))
