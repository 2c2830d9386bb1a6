"""RAFT: fine-tuning on the best of the policy's own responses."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch

from rlhf_lightning.algorithms.on_policy import OnPolicyModule
from rlhf_lightning.experience.choice import best_of_all, best_of_each
from rlhf_lightning.experience.credit import Credit
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.functional import best_of_n_kl, kl_estimate, masked_mean, policy_gradient_loss
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rollout import Rollout
from rlhf_lightning.setting_rules import check_samples_to_choose
from rlhf_lightning.value_checks import checked


class RAFTModule(OnPolicyModule):
    """Reward-ranked fine-tuning (Dong et al. 2023): SFT's loss on the best of K responses to each prompt.

        loss = - 1/n sum_i sum_t log pi(y_it | x_i, y_i<t),        n: tokens of the chosen responses

    A prompt whose responses all have the same reward is dropped: its "best" would be a random one.

    Args:
        select: `per_prompt`: the best response to each prompt; `share`: the best 1 / K of all responses of a process,
            which come mostly from prompts that are easy.
        whiten_advantages: false; there are no advantages.
    """

    title: ClassVar[str] = "reward-ranked fine-tuning"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "reward")
    logs: ClassVar[tuple[str, ...]] = (
        *("rollout/ties", "rollout/chosen_scores", "rollout/best_of_n_kl", "policy/nll"),
    )
    trained_per_prompt: ClassVar[int | None] = 1

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        select: Literal["per_prompt", "share"] = "per_prompt",
        importance_cap: None = None,
        whiten_advantages: Literal[False] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, importance_cap=importance_cap, whiten_advantages=whiten_advantages, **kwargs)
        check_samples_to_choose(type(self).__name__, self.trained_per_prompt, self.rollout.samples_per_prompt)
        self.select = select

    def advantages(self, rollout: Rollout) -> Credit:
        """Return zeros: the choice takes the place of advantages."""
        return Credit(torch.zeros_like(rollout.rewards))

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Return the chosen responses, by their rewards (with KL, if it is in the reward)."""
        rollout, size = super().collect(), self.rollout.samples_per_prompt
        rewards = rollout.rewards.sum(dim=1)
        ties = 1 - best_of_each(rewards, size)[1].mean()
        choose, kl = (best_of_each, best_of_n_kl) if self.select == "per_prompt" else (best_of_all, math.log)
        rows, learned = choose(rewards, size)
        chosen = rollout.select(rows, rollout.denominator)
        chosen.learned = learned
        count = learned.sum()
        self.record("rollout/ties", ties, len(rollout) / size)
        self.record("rollout/best_of_n_kl", kl(size))
        self.record("rollout/chosen_scores", (chosen.scores * learned).sum() / count.clamp(min=1), count)
        return chosen

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """Return the negative log-likelihood of the chosen responses, a mean over the step's tokens."""
        mask, weights = batch.loss_mask, batch.learned.unsqueeze(1).expand_as(batch.mask)
        loss, _ = policy_gradient_loss(out.logprobs, weights, mask, denominator=batch.denominator)
        drift = masked_mean(kl_estimate(batch.logprobs, out.logprobs.detach(), "k3"), mask)
        return loss, {"policy/loss": loss * batch.share, "policy/nll": loss * batch.share, "policy/approx_kl": drift}
