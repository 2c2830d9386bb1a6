"""Online DPO: the best against the worst of the policy's own responses to a prompt."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from rlhf_lightning.algorithms.on_policy import OnPolicyModule
from rlhf_lightning.experience.choice import best_and_worst
from rlhf_lightning.experience.credit import Credit
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.functional import answer_logps, dpo_loss, implicit_rewards, kl_estimate, masked_mean
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rollout import Rollout
from rlhf_lightning.setting_rules import check_samples_to_choose
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Positive


class OnlineDPOModule(OnPolicyModule):
    """DPO on pairs that are sampled from the policy and labelled by a reward (Guo et al. 2024).

        loss = - log sigmoid(beta (log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)))        for `sigmoid`

    Of the K responses to a prompt, y_w has the highest and y_l the lowest reward. A prompt whose responses all have the
    same reward is dropped: the mean is over the other pairs of the step, and without any the loss is 0.

    Args:
        beta: strength of the pull towards the reference, > 0.
        loss_type: see `functional.dpo_loss`; `ipo` compares means per token.
        whiten_advantages: false; there are no advantages.
    """

    title: ClassVar[str] = "online direct preference optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "reward")
    logs: ClassVar[tuple[str, ...]] = (
        *("rollout/ties", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
    )
    whole_groups: ClassVar[bool] = True
    trained_per_prompt: ClassVar[int | None] = 2

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        beta: Positive = 0.1,
        loss_type: Literal["sigmoid", "ipo", "hinge"] = "sigmoid",
        importance_cap: None = None,
        whiten_advantages: Literal[False] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, importance_cap=importance_cap, whiten_advantages=whiten_advantages, **kwargs)
        check_samples_to_choose(type(self).__name__, self.trained_per_prompt, self.rollout.samples_per_prompt)
        self.beta, self.loss_type = beta, loss_type

    def advantages(self, rollout: Rollout) -> Credit:
        """Return zeros: pairs take the place of advantages."""
        return Credit(torch.zeros_like(rollout.rewards))

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Return the best and the worst response to each prompt, by their rewards (with KL, if it is in the reward)."""
        rollout = super().collect()
        rows, learned = best_and_worst(rollout.rewards.sum(dim=1), self.rollout.samples_per_prompt)
        self.record("rollout/ties", 1 - learned.mean(), len(learned) / 2)
        pairs = rollout.select(rows, rollout.denominator)
        pairs.learned, pairs.per_response = learned, True
        return pairs

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """Return the sum of the pairs' losses divided by the step's number of pairs."""
        lengths, policy, reference = batch.mask.sum(dim=1), out.logprobs * batch.mask, batch.ref_logprobs * batch.mask
        logps, ref_logps = (answer_logps(x.sum(dim=1), lengths, self.loss_type) for x in (policy, reference))
        chosen, rejected, count = slice(0, None, 2), slice(1, None, 2), batch.learned[::2]
        pairs = (logps[chosen], logps[rejected], ref_logps[chosen], ref_logps[rejected])
        losses = dpo_loss(*pairs, beta=self.beta, loss_type=self.loss_type)
        loss = (losses * count).sum() / (batch.responses / 2)
        rewards = implicit_rewards(logps, ref_logps, self.beta).detach()
        margins = rewards[chosen] - rewards[rejected]
        per_pair = {
            "rewards/chosen": rewards[chosen],
            "rewards/rejected": rewards[rejected],
            "rewards/margins": margins,
            "rewards/accuracies": (margins.sign() + 1) / 2,
        }
        stats = {name: (x * count).sum() / count.sum().clamp(min=1) for name, x in per_pair.items()}
        drift = masked_mean(kl_estimate(batch.logprobs, out.logprobs.detach(), "k3"), batch.loss_mask)
        return loss, stats | {"policy/loss": loss * batch.share, "policy/approx_kl": drift}
