"""PPO under a limit on costs: the reward is maximised as long as the mean cost stays below the limit.

Deviations from Dai et al. 2023: the multiplier follows PID control instead of gradient ascent on its logarithm; the
KL's coefficient may adapt; the whole pretraining mix, if any, is PPO-ptx's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.ppo import PPOModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.experience.costs import CostScorer, cost_statistics
from rlhf_lightning.experience.credit import Credit
from rlhf_lightning.experience.held_out import HeldOut
from rlhf_lightning.experience.multiplier import CostMultiplier, MultiplierController
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.functional import generalized_advantage_estimate, kl_estimate, ppo_value_loss, token_rewards
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rewards import RewardFunction
from rlhf_lightning.rollout import Generation, Rollout
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Number


class PPOLagrangianModule(PPOModule):
    """Maximise E[reward] subject to E[cost] <= limit (Safe RLHF, Dai et al. 2023, section 3.3).

        A = (A_R - lambda A_C) / (1 + lambda)

    Reward and cost have a critic each, and an advantage each by GAE. The KL goes with -beta to the token rewards and
    with +beta to the token costs, so that A has it with -beta whatever lambda is. The multiplier lambda follows the
    mean cost of the responses that are being learned from, under PID control (see CostMultiplier).

    Args:
        cost: scores whole responses, higher is worse. `shaping` does not apply to it: the limit is in its own unit.
        cost_limit: the most cost per response, on average.
        multiplier: see CostMultiplier.
    """

    title: ClassVar[str] = "proximal policy optimisation under a limit on costs"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "critic", "cost_critic", "reward", "cost")
    logs: ClassVar[tuple[str, ...]] = (
        *("cost/scores", "cost/safe", "cost/multiplier", "cost/value_loss", "cost/explained_variance", "val/cost"),
    )
    resumes: ClassVar[tuple[str, ...]] = ("multiplier",)

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        cost: RewardFunction,
        cost_limit: Number = 0.0,
        multiplier: CostMultiplier | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.cost_scorer = CostScorer(cost, self.tokenizer)
        self.multiplier = MultiplierController(multiplier or CostMultiplier(), cost_limit)

    def scored_by(self) -> list[RewardFunction]:
        """Return the reward and the cost."""
        return [*super().scored_by(), self.cost_scorer.given]

    def on_fit_start(self) -> None:
        """Prepare the cost too."""
        super().on_fit_start()
        self.cost_scorer.prepare(self.device, self.rollout.max_new_tokens)

    def evaluate(self, prompts: list[PromptRow], generation: Generation) -> Rollout:
        """Return the rollout with the costs of its responses."""
        rollout = super().evaluate(prompts, generation)
        rollout.cost_scores = self.cost_scorer(prompts, generation, self.device)
        return rollout

    def advantages(self, rollout: Rollout) -> Credit:
        """Return the advantages of the reward against the cost, and the reward's returns; the cost's stay in `rollout`.

        The multiplier first follows the mean cost of this iteration's responses, on all processes. What is whitened is
        the combination: whitening its parts would change what the multiplier weighs.
        """
        assert rollout.cost_scores is not None and rollout.cost_values is not None and rollout.values is not None
        self.multiplier.update(float(self.gather(rollout.cost_scores).mean()))
        weight, mask, settings = self.multiplier.value, rollout.mask, (self.gamma, self.lam)
        of_reward, returns = generalized_advantage_estimate(rollout.rewards, rollout.values, mask, *settings)
        costs = self.token_costs(rollout)
        of_cost, rollout.cost_returns = generalized_advantage_estimate(costs, rollout.cost_values, mask, *settings)
        self.record_all(cost_statistics(rollout, weight, self.gather_tokens))
        combined = (of_reward - weight * of_cost) / (1 + weight)
        return Credit(self.whiten(combined, mask) if self.whiten_advantages else combined, returns)

    def token_costs(self, rollout: Rollout) -> Tensor:
        """Return costs [B, T]: the cost at the last valid token, plus the coefficient times KL at every token."""
        assert rollout.cost_scores is not None
        kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.kl.kl_kind)
        coef = self.kl_controller.value if self.kl.placement == "reward" else 0.0
        return token_rewards(rollout.cost_scores, kl, rollout.mask, -coef)

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """Return PPO's two losses, and the value loss of the cost's critic."""
        assert out.cost_values is not None and batch.cost_values is not None and batch.cost_returns is not None
        loss, stats = super().objective(out, batch)
        targets = (batch.cost_values, batch.cost_returns, batch.mask)
        of_cost, _ = ppo_value_loss(out.cost_values, *targets, self.value_clip_range, denominator=batch.denominator)
        return loss + self.value_coef * of_cost, stats | {"cost/value_loss": of_cost * batch.share}

    @torch.no_grad()
    def validation_step(self, batch: list[PromptRow], batch_idx: int) -> HeldOut:  # type: ignore[override]
        """Do the same for held-out prompts, whose costs are logged too."""
        held_out = super().validation_step(batch, batch_idx)
        costs = held_out.rollout.cost_scores
        assert costs is not None
        self.record("val/cost", costs.mean(), len(costs))
        return held_out
