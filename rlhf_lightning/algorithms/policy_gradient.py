"""Policy gradients without a critic: GRPO, Dr. GRPO, GSPO, CISPO, RLOO, REINFORCE++, which differ only in settings.

    L = - 1/n sum_i w_i sum_t min(rho_it A_it, clip(rho_it) A_it);      w_i = 1, or 1 / |y_i| with aggregation=sequence

A compares a response with the other responses to its prompt (`group_mean`, `leave_one_out`) or is the reward still to
come (`returns`). docs/algorithms/ has a page for each.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from rlhf_lightning.algorithms.resampling import ResamplingModule
from rlhf_lightning.experience.credit import Credit, critic_free
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.experience.policy_loss import PolicyLoss
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rollout import Rollout
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Between, Fraction, Positive


class PolicyGradientModule(ResamplingModule):
    """A policy gradient with other responses as its baseline, or none; no value function is built.

    Args:
        estimator: `group_mean`: the response's reward minus the mean of its group (Shao et al. 2024, section 4.1.2);
            `leave_one_out`: minus the mean of the others (Ahmadian et al. 2024, eq. 7); `returns`: the sum of the token
            rewards from each token on (Hu et al. 2025). With KL in the reward, rewards include the KL penalty.
        scale: `std` divides by the group's standard deviation; `none` does not. Not for `returns`.
        gamma: discount of `returns`, in [0, 1].
        loss_type: `ppo`: the clipped surrogate above; `cispo`: tokens weighted by their clipped ratios, see
            `functional.cispo_loss`.
        clip_range: clip ratios to 1 +- this; null: for `ppo` the plain policy gradient, without a ratio, for `cispo`
            no lower bound.
        clip_range_high: the upper side of the range; null: the same as `clip_range`.
        ratio: of each `token`, or of the `sequence`: exp of the mean of its tokens' log-ratios.
        aggregation: `token`: mean over all tokens of a minibatch; `sequence`: mean over responses of each one's mean.
        denominator: with aggregation=token, divide sums by this many tokens per response instead of by the actual
            number of tokens; `max_new_tokens`: by the longest possible response (Liu et al. 2025); null: by the actual
            number.
        whiten_advantages: scale advantages to mean 0 and std 1 over the valid tokens of the iteration, all processes.
    """

    title: ClassVar[str] = "policy gradient without a critic"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "reward")

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        estimator: Literal["group_mean", "leave_one_out", "returns"] = "group_mean",
        scale: Literal["std", "none"] = "none",
        gamma: Fraction = 1.0,
        loss_type: Literal["ppo", "cispo"] = "ppo",
        clip_range: Between | None = 0.2,
        clip_range_high: Positive | None = None,
        ratio: Literal["token", "sequence"] = "token",
        aggregation: Literal["token", "sequence"] = "token",
        denominator: Positive | Literal["max_new_tokens"] | None = None,
        whiten_advantages: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, whiten_advantages=whiten_advantages, **kwargs)
        self.estimator = critic_free(estimator, scale, gamma, self.rollout.samples_per_prompt)
        longest = self.rollout.max_new_tokens if denominator == "max_new_tokens" else denominator
        self.policy_loss = PolicyLoss(loss_type, clip_range, clip_range_high, ratio, aggregation, longest)

    def advantages(self, rollout: Rollout) -> Credit:
        """Return the estimator's advantages, whitened if asked for."""
        advantages = self.estimator(rollout).advantages
        return Credit(self.whiten(advantages, rollout.loss_mask) if self.whiten_advantages else advantages)

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """Return the loss that `loss_type` and `clip_range` choose."""
        return self.policy_loss(out.logprobs, batch)

    def average(self, x: Tensor, batch: Rollout, weight: float = 1.0) -> Tensor:
        """Return `weight` times the mean of x [B, T], which is 0 outside the mask, aggregated like the policy loss."""
        return self.policy_loss.average(x, batch, weight)
