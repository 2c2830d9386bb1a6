"""The losses of on-policy algorithms: PPO's two clipped losses, CISPO's, and the plain policy gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import blank, check_choice, check_positive, check_shapes, divide
from rlhf_lightning.functional.kl import kl_estimate
from rlhf_lightning.functional.masking import masked_mean

RATIOS, AGGREGATIONS = ("token", "sequence"), ("token", "sequence")


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range: float = 0.2,
    clip_range_high: float | None = None,
    ratio: str = "token",
    aggregation: str = "token",
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""The surrogate: $\frac1n \sum_t \max(-A_t \rho_t,\; -A_t\,\mathrm{clip}(\rho_t, 1-\epsilon, 1+\epsilon_h))$.

    $\rho_t = \pi(a_t) / \pi_{old}(a_t)$. Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7, negated; the wider
    upper side: DAPO, Yu et al. 2025 (arXiv:2503.14476), eq. 10; the ratio of a sequence: GSPO, Zheng et al. 2025
    (arXiv:2507.18071), eq. 7.

    Args:
        logprobs: [B, T], under the policy being trained; the only argument a gradient should reach.
        old_logprobs: [B, T], under the policy that sampled.
        advantages: [B, T].
        mask: [B, T], nonzero on valid tokens.
        clip_range: $\epsilon$.
        clip_range_high: $\epsilon_h$; None: the same as `clip_range`.
        ratio: `token`, or `sequence`: every token of a response has the same ratio, $\exp$ of the mean of its
            log-ratios.
        aggregation: `token`: the mean over all valid tokens. `sequence`: the mean over responses of each response's
            mean over its tokens.
        denominator: n, the divisor of the sum over valid tokens (for `sequence`: over the responses' means); None:
            their number.

    Returns:
        The loss, a scalar, and detached scalars over the valid tokens: `approx_kl` (k3 estimate of KL(old || new), nats
        per token), `clip_fraction` (share where the clipped term is larger, so that no gradient flows),
        `ratio_mean` and `ratio_max`. All are 0 if no token is valid.

    Raises:
        ValueError: the four are not all [B, T]; `clip_range`, `clip_range_high` or a float `denominator` is not above
            0; `ratio` or `aggregation` is unknown.

    >>> old = torch.tensor([[0.5, 0.5, float("nan")]]).log()
    >>> new = torch.tensor([[0.5, 0.75, float("nan")]]).log()
    >>> loss, stats = ppo_policy_loss(new, old, torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1, 1, 0]]))
    >>> loss, stats["clip_fraction"], stats["ratio_max"]  # -(1 + 1.2) / 2
    (tensor(-1.1000), tensor(0.5000), tensor(1.5000))
    """
    check_shapes(2, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    check_choice(ratio=(ratio, RATIOS), aggregation=(aggregation, AGGREGATIONS))
    high = clip_range if clip_range_high is None else clip_range_high
    check_positive(clip_range=clip_range, clip_range_high=high)
    valid = mask != 0
    logprobs, old_logprobs, advantages = (blank(x, valid) for x in (logprobs, old_logprobs, advantages))
    log_ratio = logprobs - old_logprobs
    if ratio == "sequence":
        log_ratio = masked_mean(log_ratio, valid, dim=1).unsqueeze(1).expand_as(log_ratio)
    ratios = torch.exp(log_ratio)
    unclipped = -advantages * ratios
    clipped = -advantages * ratios.clamp(1 - clip_range, 1 + high)
    loss = _aggregate(torch.maximum(unclipped, clipped), valid, aggregation, denominator)
    return loss, _ratio_statistics(logprobs, old_logprobs, ratios, clipped > unclipped, valid)


def cispo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_range_low: float | None = None,
    clip_range_high: float = 4.0,
    aggregation: str = "token",
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Return CISPO's loss: $-\frac1n \sum_t w_t A_t \log \pi(a_t)$.

    $w_t = \mathrm{clip}(\rho_t, 1-\epsilon_l, 1+\epsilon_h)$ with $\rho_t = \pi(a_t) / \pi_{old}(a_t)$, and no gradient
    flows through $w_t$: what is clipped is the weight of a token, so that every token keeps a gradient, where PPO's
    surrogate has none beyond its range. Source: MiniMax 2025 (arXiv:2506.13585), section 3.1, which sets no lower
    bound.

    Args:
        logprobs: [B, T], under the policy being trained; the only argument a gradient should reach.
        old_logprobs: [B, T], under the policy that sampled.
        advantages: [B, T].
        mask: [B, T], nonzero on valid tokens.
        clip_range_low: $\epsilon_l$; None: no lower bound.
        clip_range_high: $\epsilon_h$: weights are at most 1 plus this.
        aggregation: `token` or `sequence`, as for `ppo_policy_loss`.
        denominator: n, as for `ppo_policy_loss`; None: the number of valid tokens, or of responses.

    Returns:
        The loss, a scalar, and the detached scalars of `ppo_policy_loss`, except that `clip_fraction` is the share of
        valid tokens whose ratio is outside the range.

    Raises:
        ValueError: the four are not all [B, T]; a range or a float `denominator` is not above 0; `aggregation` is
            unknown.

    >>> old, new = torch.tensor([[0.5, 0.1, float("nan")]]).log(), torch.tensor([[0.5, 0.8, float("nan")]]).log()
    >>> loss, stats = cispo_loss(new, old, torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1, 1, 0]]))
    >>> loss, stats["clip_fraction"], stats["ratio_max"]  # -(log 0.5 + 5 log 0.8) / 2
    (tensor(0.9044), tensor(0.5000), tensor(8.))
    """
    check_shapes(2, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    check_choice(aggregation=(aggregation, AGGREGATIONS))
    check_positive(clip_range_high=clip_range_high)
    if clip_range_low is not None:
        check_positive(clip_range_low=clip_range_low)
    valid = mask != 0
    logprobs, old_logprobs, advantages = (blank(x, valid) for x in (logprobs, old_logprobs, advantages))
    ratios = torch.exp(logprobs.detach() - old_logprobs)
    weights = ratios.clamp(None if clip_range_low is None else 1 - clip_range_low, 1 + clip_range_high)
    loss = _aggregate(-weights * advantages * logprobs, valid, aggregation, denominator)
    return loss, _ratio_statistics(logprobs, old_logprobs, ratios, weights != ratios, valid)


def _aggregate(losses: Tensor, valid: Tensor, aggregation: str, denominator: Tensor | float | None) -> Tensor:
    """Return the mean over tokens of [B, T], or over responses of the means over their tokens."""
    if aggregation == "token":
        return divide(losses.sum(), denominator, default=valid.sum())
    return divide(masked_mean(losses, valid, dim=1).sum(), denominator, default=valid.any(1).sum())


@torch.no_grad()
def _ratio_statistics(
    logprobs: Tensor, old_logprobs: Tensor, ratios: Tensor, clipped: Tensor, valid: Tensor
) -> dict[str, Tensor]:
    return {
        "approx_kl": masked_mean(kl_estimate(old_logprobs, logprobs, "k3"), valid),
        "clip_fraction": masked_mean(clipped, valid),
        "ratio_mean": masked_mean(ratios, valid),
        "ratio_max": blank(ratios, valid).amax(),
    }


def policy_gradient_loss(
    logprobs: Tensor, advantages: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Return the policy-gradient loss: $-\frac1n \sum_t A_t \log \pi(a_t)$.

    Source: Williams 1992, REINFORCE; with a baseline in the advantages, Sutton et al. 2000, eq. 2. On samples of the
    policy itself its gradient is that of PPO's surrogate at ratio 1.

    Args:
        logprobs: [B, T], under the policy being trained; the only argument a gradient should reach.
        advantages: [B, T].
        mask: [B, T], nonzero on valid tokens.
        denominator: n, the divisor of the sum over valid tokens; None: their number.

    Returns:
        The loss, a scalar, and the detached scalar `nll` (mean of -log pi over the valid tokens, in nats). Both are 0
        if no token is valid.

    Raises:
        ValueError: the three are not all [B, T]; a float `denominator` is not above 0.

    >>> logprobs = torch.tensor([[-1.0, -2.0, float("nan")]])
    >>> loss, stats = policy_gradient_loss(logprobs, torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[1, 1, 0]]))
    >>> loss, stats["nll"]
    (tensor(2.), tensor(1.5000))
    """
    check_shapes(2, logprobs=logprobs, advantages=advantages, mask=mask)
    valid = mask != 0
    logprobs, advantages = blank(logprobs, valid), blank(advantages, valid)
    loss = divide(-(advantages * logprobs).sum(), denominator, default=valid.sum())
    return loss, {"nll": masked_mean(-logprobs.detach(), valid)}


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float | None = 0.2,
    *,
    denominator: Tensor | float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Return the clipped squared error: $\frac1n \sum_t \frac12 \max((V_t - R_t)^2,\; (V^{clip}_t - R_t)^2)$.

    $V^{clip}$ is V kept within `clip_range` of the old value. Source: openai/lm-human-preferences, `train_policy.py`,
    `vf_losses1`, `vf_losses2` (the clipping is not in the PPO paper).

    Args:
        values: [B, T], the values being trained; the only argument a gradient should reach.
        old_values: [B, T], the values at sampling time.
        returns: [B, T], the targets.
        mask: [B, T], nonzero on valid tokens.
        clip_range: in units of the score; None: no clipping.
        denominator: n, the divisor of the sum over valid tokens; None: their number.

    Returns:
        The loss, a scalar, and the detached scalar `clip_fraction` (share of valid tokens where the clipped term is
        larger, so that no gradient flows). Both are 0 if no token is valid.

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
        # Clamping the value rather than its distance leaves an unclipped value bitwise unchanged.
        clipped = (values.clamp(old_values - clip_range, old_values + clip_range) - returns).square()
    loss = divide(0.5 * torch.maximum(unclipped, clipped).sum(), denominator, default=valid.sum())
    return loss, {"clip_fraction": masked_mean(clipped > unclipped, valid)}
