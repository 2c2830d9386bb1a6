"""The loss of a policy from given advantages: PPO's surrogate, CISPO's, or the plain policy gradient."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlhf_lightning.experience.credit import refuse
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.functional import cispo_loss, policy_gradient_loss, ppo_policy_loss
from rlhf_lightning.rollout import Rollout


@dataclass(frozen=True)
class PolicyLoss:
    """Turns the advantages of a minibatch into a loss; the arguments are those of `PolicyGradientModule`."""

    loss_type: str = "ppo"
    clip_range: float | None = 0.2
    clip_range_high: float | None = None
    ratio: str = "token"
    aggregation: str = "token"
    denominator: float | None = None

    def __post_init__(self) -> None:
        ppo, plain = self.loss_type == "ppo", self.clip_range is None
        high, sequence = self.clip_range_high is not None, self.ratio == "sequence"
        refuse(ppo and plain and high, "clip_range_high: algorithm.clip_range=null has no ratio; use null")
        refuse(ppo and plain and sequence, "ratio: algorithm.clip_range=null has no ratio; use token, or a clip_range")
        refuse(not ppo and sequence, "ratio: found sequence, but algorithm.loss_type=cispo weights tokens; use token")
        refuse(
            not ppo and plain and not high,
            "clip_range_high: found null beside clip_range=null, but algorithm.loss_type=cispo clips its weights; give "
            "a number, such as 4.0",
        )
        refuse(
            self.denominator is not None and self.aggregation != "token",
            "denominator: only algorithm.aggregation=token reads it; use null, or that",
        )

    def __call__(self, logprobs: Tensor, batch: Rollout) -> Loss:
        """Return the loss, and statistics by their full names."""
        n, tokens = self.divisor(batch), (logprobs, batch.logprobs, batch.advantages, batch.loss_mask)
        if self.loss_type == "cispo":
            high = self.clip_range if self.clip_range_high is None else self.clip_range_high
            assert high is not None
            loss, stats = cispo_loss(*tokens, self.clip_range, high, self.aggregation, n)
        else:
            clip = (self.clip_range or 1.0, self.clip_range_high)
            loss, stats = ppo_policy_loss(*tokens, *clip, self.ratio, self.aggregation, n)
            if self.clip_range is None:
                weights = batch.advantages / self.lengths(batch)
                loss, _ = policy_gradient_loss(logprobs, weights, batch.loss_mask, denominator=n)
                del stats["clip_fraction"]
        return loss, {f"policy/{name}": x for name, x in stats.items()} | {"policy/loss": loss * batch.share}

    def average(self, x: Tensor, batch: Rollout, weight: float = 1.0) -> Tensor:
        """Return `weight` times the mean of x [B, T], which is 0 outside the mask, aggregated like the policy loss."""
        return weight * (x / self.lengths(batch)).sum() / self.divisor(batch)

    def lengths(self, batch: Rollout) -> Tensor | float:
        """Return the divisor of each response's token sum: its number of tokens, [B, 1], or 1."""
        return batch.mask.sum(dim=1, keepdim=True) if self.aggregation == "sequence" else 1.0

    def divisor(self, batch: Rollout) -> float:
        """Return the divisor of micro-batch sums that makes a step's sums add up to a mean over all processes."""
        if self.aggregation == "sequence":
            return batch.responses
        return batch.denominator if self.denominator is None else batch.responses * self.denominator
