"""Proximal policy optimisation from a reward and a KL penalty.

Deviations from Ziegler et al. 2019 and Ouyang et al. 2022: responses end at the EOS; losses are means over the valid
tokens of the whole minibatch; whitening is over the whole iteration.
"""

from __future__ import annotations

from typing import Any, ClassVar

from rlhf_lightning.algorithms.on_policy import OnPolicyModule
from rlhf_lightning.experience.credit import GAE, Credit
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.functional import ppo_policy_loss, ppo_value_loss
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rollout import Rollout
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Between, Fraction, NonNegative, Positive


class PPOModule(OnPolicyModule):
    """The clipped objective of Schulman et al. 2017 on responses, with a value function and a KL penalty.

        loss = policy + value_coef * value - entropy_coef * entropy [+ kl * k2] [+ ptx]

    With `ppo_epochs=1 num_minibatches=1 whiten_advantages=false` it is A2C.

    Args:
        clip_range: clip policy ratios to 1 +- this.
        value_clip_range: clip new values to the old ones +- this; null: no clipping.
        value_coef: weight of the value loss.
        gamma, lam: discount and GAE lambda, each in [0, 1].
    """

    title: ClassVar[str] = "proximal policy optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "critic", "reward")
    logs: ClassVar[tuple[str, ...]] = ("value/loss", "value/clip_fraction", "value/explained_variance")

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        clip_range: Between = 0.2,
        value_clip_range: Positive | None = 0.2,
        value_coef: NonNegative = 0.1,
        gamma: Fraction = 1.0,
        lam: Fraction = 0.95,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.clip_range, self.value_clip_range, self.value_coef = clip_range, value_clip_range, value_coef
        self.gamma, self.lam = gamma, lam

    def advantages(self, rollout: Rollout) -> Credit:
        """Return GAE advantages, whitened if asked for, and returns."""
        credit = GAE(self.gamma, self.lam)(rollout)
        if self.whiten_advantages:
            return Credit(self.whiten(credit.advantages, rollout.mask), credit.returns)
        return credit

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """Return the clipped policy loss plus the clipped value loss (Schulman et al. 2017, eq. 9)."""
        assert out.values is not None and batch.values is not None and batch.returns is not None
        policy_loss, policy = ppo_policy_loss(
            out.logprobs, batch.logprobs, batch.advantages, batch.mask, self.clip_range, denominator=batch.denominator
        )
        value_loss, value = ppo_value_loss(
            out.values, batch.values, batch.returns, batch.mask, self.value_clip_range, denominator=batch.denominator
        )
        stats = {f"policy/{name}": x for name, x in policy.items()} | {f"value/{name}": x for name, x in value.items()}
        stats |= {"policy/loss": policy_loss * batch.share, "value/loss": value_loss * batch.share}
        return policy_loss + self.value_coef * value_loss, stats
