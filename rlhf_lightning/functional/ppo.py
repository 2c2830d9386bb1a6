"""The two clipped losses of PPO."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import blank, check_positive, check_shapes, divide
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masking import masked_mean


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float = 0.2,
    *,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Clipped surrogate: $\frac1n \sum_t \max(-A_t \rho_t,\; -A_t\,\mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon))$.

    $\rho_t = \pi(a_t) / \pi_{old}(a_t)$. Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7, negated.

    Args:
        logprobs: [B, T], under the policy being trained; the only argument a gradient should reach.
        old_logprobs: [B, T], under the policy that sampled.
        advantages: [B, T].
        mask: [B, T], nonzero on valid tokens.
        clip_range: $\epsilon$.
        denominator: n, what the sum over valid tokens is divided by; their number if None.

    Returns:
        The loss, a scalar, and detached scalars over the valid tokens: `approx_kl` (k3 estimate of KL(old || new), nats
        per token), `clip_fraction` (share where the clipped term is the larger, so that no gradient flows),
        `ratio_mean` and `ratio_max`. All are 0 where no token is valid.

    Raises:
        ValueError: the four are not all [B, T]; `clip_range` or a float `denominator` is not above 0.

    >>> old = torch.tensor([[0.5, 0.5, float("nan")]]).log()
    >>> new = torch.tensor([[0.5, 0.75, float("nan")]]).log()
    >>> loss, stats = ppo_policy_loss(new, old, torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1, 1, 0]]))
    >>> loss, stats["clip_fraction"], stats["ratio_max"]  # -(1 + 1.2) / 2
    (tensor(-1.1000), tensor(0.5000), tensor(1.5000))
    """
    check_shapes(2, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    check_positive(clip_range=clip_range)
    valid = mask != 0
    logprobs, old_logprobs, advantages = (blank(x, valid) for x in (logprobs, old_logprobs, advantages))
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = divide(torch.maximum(unclipped, clipped).sum(), denominator, default=valid.sum())
    with torch.no_grad():
        stats = {
            "approx_kl": masked_mean(kl_estimate(old_logprobs, logprobs, "k3"), valid),
            "clip_fraction": masked_mean(clipped > unclipped, valid),
            "ratio_mean": masked_mean(ratio, valid),
            "ratio_max": blank(ratio, valid).amax(),
        }
    return loss, stats


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float | None = 0.2,
    *,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Clipped squared error: $\frac1n \sum_t \frac12 \max((V_t - R_t)^2,\; (V^{clip}_t - R_t)^2)$.

    $V^{clip}$ is V kept within `clip_range` of the old value. Source: openai/lm-human-preferences, `train_policy.py`,
    `vf_losses1`, `vf_losses2` (the clipping is not in the PPO paper).

    Args:
        values: [B, T], the values being trained; the only argument a gradient should reach.
        old_values: [B, T], the values at sampling time.
        returns: [B, T], the targets.
        mask: [B, T], nonzero on valid tokens.
        clip_range: in units of the score; None does not clip.
        denominator: n, what the sum over valid tokens is divided by; their number if None.

    Returns:
        The loss, a scalar, and the detached scalar `clip_fraction` (share of valid tokens where the clipped term is
        the larger, so that no gradient flows). Both are 0 where no token is valid.

    Raises:
        ValueError: the four are not all [B, T]; `clip_range` or a float `denominator` is not above 0.

    >>> values, old = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 1.0]])
    >>> loss, stats = ppo_value_loss(values, old, returns=torch.tensor([[0.0, 2.0]]), mask=torch.ones(1, 2))
    >>> loss, stats["clip_fraction"]  # (0.5 * 1 + 0.5 * 0.8 ** 2) / 2
    (tensor(0.4100), tensor(0.5000))
    """
    check_shapes(2, values=values, old_values=old_values, returns=returns, mask=mask)
    valid = mask != 0
    values, old_values, returns = (blank(x, valid) for x in (values, old_values, returns))
    unclipped = clipped = (values - returns).square()
    if clip_range is not None:
        check_positive(clip_range=clip_range)
        # Clamping the value itself, not its distance, leaves an unclipped value bitwise as it is.
        clipped = (values.clamp(old_values - clip_range, old_values + clip_range) - returns).square()
    loss = divide(0.5 * torch.maximum(unclipped, clipped).sum(), denominator, default=valid.sum())
    return loss, {"clip_fraction": masked_mean(clipped > unclipped, valid)}
