"""From a score per response to a reward, an advantage and a return per token."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import (
    at_least_float32,
    blank,
    check_choice,
    check_positive,
    check_probability,
    check_shapes,
)

BASELINES, SCALES = ("mean", "leave_one_out"), ("std", "none")


def token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float | Tensor) -> Tensor:
    r"""Return KL penalties plus the final score: $r_t = -\beta\,\mathrm{kl}_t + [t = T_{last}]\,s$.

    Summed over a response this is $s - \beta \sum_t \mathrm{kl}_t$: Ziegler et al. 2019 (arXiv:1909.08593), eq. 2.

    Args:
        scores: [B], one per response.
        kl: [B, T], nats per token, as from `kl_estimate`.
        mask: [B, T], nonzero on valid tokens; the last of them (the EOS, or the last token of a truncated response)
            gets the score.
        kl_coef: $\beta$, score per nat.

    Returns:
        [B, T] in at least float32, 0 outside the mask. A row without valid tokens is all 0: its score has no position.

    Raises:
        ValueError: `scores` is not [B], or `kl` and `mask` are not both [B, T].

    >>> mask = torch.tensor([[1.0, 1.0, 0.0]])
    >>> token_rewards(torch.tensor([2.0]), torch.tensor([[0.5, 1.0, float("nan")]]), mask, kl_coef=0.1)
    tensor([[-0.0500,  1.9000,  0.0000]])
    """
    check_shapes(2, kl=kl, mask=mask)
    if scores.shape != kl.shape[:1]:
        raise ValueError(f"`scores` has shape {list(scores.shape)}; expected {list(kl.shape[:1])}, the rows of `kl`")
    valid = mask != 0
    is_last = valid & (valid.cumsum(1) == valid.sum(1, keepdim=True))
    penalty = kl_coef * blank(kl, valid)
    return blank(at_least_float32(scores).unsqueeze(1).expand_as(penalty), is_last) - penalty


def generalized_advantage_estimate(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    r"""Return GAE: $\hat A_t = \sum_l (\gamma\lambda)^l \delta_{t+l}$ with $\delta_t = r_t + \gamma V_{t+1} - V_t$.

    Source: Schulman et al. 2015 (arXiv:1506.02438), eq. 16. The value after the last valid token is 0, also if the
    response was cut off by its length limit. Gaps in the mask are skipped as if they did not exist.

    Args:
        rewards: [B, T], reward for taking token t.
        values: [B, T], value before token t is chosen.
        mask: [B, T], nonzero on valid tokens.
        gamma: discount, per token.
        lam: $\lambda$; 1 gives the Monte Carlo return minus the value, 0 the one-step error.

    Returns:
        Advantages and returns (advantages + values), [B, T] in at least float32, both 0 outside the mask.

    Raises:
        ValueError: the three are not all [B, T]; `gamma` or `lam` is outside [0, 1].

    >>> rewards, values = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.5, 0.5, 9.0]])
    >>> advantages, returns = generalized_advantage_estimate(rewards, values, torch.tensor([[1, 1, 0]]), lam=0.5)
    >>> advantages, returns
    (tensor([[0.2500, 0.5000, 0.0000]]), tensor([[0.7500, 1.0000, 0.0000]]))
    """
    check_shapes(2, rewards=rewards, values=values, mask=mask)
    check_probability(gamma=gamma, lam=lam)
    valid = mask != 0
    rewards, values = blank(rewards, valid), blank(values, valid)
    advantage = next_value = torch.zeros_like(values[:, 0])
    backwards = []
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(valid[:, t], delta + gamma * lam * advantage, advantage)
        next_value = torch.where(valid[:, t], values[:, t], next_value)
        backwards.append(advantage)
    advantages = blank(torch.stack(backwards[::-1], dim=1), valid)
    return advantages, advantages + values


def group_advantages(
    scores: Tensor, group_size: int, baseline: str = "mean", scale: str = "std", eps: float = 1e-6
) -> Tensor:
    r"""Return each response's advantage over the others to its prompt: $A_i = (R_i - b_i) / (\sigma + \epsilon)$.

    $b_i$ is the mean of the group (`mean`: GRPO, Shao et al. 2024, arXiv:2402.03300, section 4.1.2) or of the other
    responses in it (`leave_one_out`: RLOO, Ahmadian et al. 2024, arXiv:2402.14740, eq. 7), which makes the difference G
    / (G - 1) times as large. $\sigma$ is the group's standard deviation with G - 1 in the denominator; `none` does not
    divide (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783, section 3).

    Args:
        scores: [B], with the responses to a prompt adjacent: rows 0 to G - 1 are the first group.
        group_size: G, responses per prompt, at least 2.
        baseline: `mean` or `leave_one_out`.
        scale: `std` or `none`.
        eps: $\epsilon$, in units of the score.

    Returns:
        [B] in at least float32. A group whose scores are all equal is exactly 0: its standard deviation would be
        rounding noise.

    Raises:
        ValueError: `scores` is not [B]; `group_size` is below 2 or does not divide B; `baseline` or `scale` is unknown;
            `eps` is not above 0.

    >>> group_advantages(torch.tensor([1.0, 3.0, 5.0, 5.0]), group_size=2, scale="none")
    tensor([-1.,  1.,  0.,  0.])
    >>> group_advantages(torch.tensor([1.0, 3.0]), group_size=2, baseline="leave_one_out", scale="none")
    tensor([-2.,  2.])
    """
    check_shapes(1, scores=scores)
    check_choice(baseline=(baseline, BASELINES), scale=(scale, SCALES))
    check_positive(eps=eps)
    if group_size < 2:
        raise ValueError(f"`group_size` is {group_size}; expected at least 2: one response has nothing to compare with")
    if len(scores) % group_size:
        raise ValueError(f"`scores` has {len(scores)} rows; expected a multiple of `group_size`, {group_size}")
    groups = at_least_float32(scores).view(-1, group_size)
    advantages = groups - groups.mean(1, keepdim=True)
    if baseline == "leave_one_out":
        advantages = advantages * (group_size / (group_size - 1))
    if scale == "std":
        advantages = advantages / (groups.std(1, keepdim=True) + eps)
    equal = groups.amax(1, keepdim=True) == groups.amin(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0).view(-1)
