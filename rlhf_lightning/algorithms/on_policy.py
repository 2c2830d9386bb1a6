"""On-policy algorithms: collect responses, credit their tokens, update; one iteration is one Trainer epoch.

An algorithm defines `advantages` and `objective`; it may also override `collect`, `scores`, `token_rewards` and `loss`.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rlhf_lightning.algorithms.iterations import IterationModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.experience.credit import Credit
from rlhf_lightning.experience.engine_gap import weigh_by_engine
from rlhf_lightning.experience.held_out import HeldOut
from rlhf_lightning.experience.kl_control import KLPenalty
from rlhf_lightning.experience.old_policy import OldPolicy, keep_from_engine
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.experience.reward_shaping import RewardShaping
from rlhf_lightning.experience.sampled import Sampled
from rlhf_lightning.experience.scorer import Scorer
from rlhf_lightning.experience.statistics import ROLLOUT_METRICS, held_out_statistics, iteration_statistics, samples
from rlhf_lightning.experience.token_scores import rewards_at_tokens
from rlhf_lightning.functional import kl_estimate
from rlhf_lightning.models import ActorCritic, Reference, end_of_sequence_ids, whole_weights
from rlhf_lightning.models.forward import backbone, bare_model
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rewards import RewardFunction, as_reward
from rlhf_lightning.rollout import Generation, Rollout, RolloutEngine, as_engine, make_engine, seeded_generator
from rlhf_lightning.setting_rules import check_importance
from rlhf_lightning.training.resume_points import refuse_within_iterations
from rlhf_lightning.training.row_limits import check_rows
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive


class OnPolicyModule(IterationModule):
    """The base of on-policy algorithms. It builds only the networks that `roles` names, such as a critic.

    Args:
        reward: scores responses, or their tokens.
        kl, shaping: see KLPenalty, RewardShaping.
        entropy_coef: weight of the entropy bonus.
        old_logprobs: where the log-probabilities in ratios and penalties come from: `trainer` computes them again;
            `engine` takes those that the native engine sampled with, and in layout `shared` its values too.
        importance_cap: weight each token by min(pi_old / pi_engine, cap) in the policy loss, to correct for an engine
            whose probabilities differ from the trainer's; null: no correction, every weight is 1.
        whiten_advantages: scale advantages to mean 0 and std 1 over the valid tokens of the iteration, all processes.
        layout: `shared`: one base serves all networks where adapters allow it; `separate`: each has its own copy.
        engine: generates responses; null: the engine that `rollout` describes.
    """

    data: ClassVar[str] = "prompts"
    title: ClassVar[str] = "reinforcement learning"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "reward")
    logs: ClassVar[tuple[str, ...]] = ROLLOUT_METRICS
    resumes: ClassVar[tuple[str, ...]] = ("kl_controller", "reward_moments", "part_moments")

    blown_up = 1e4  # returns that become ten times larger make the value loss a hundred times larger

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        reward: RewardFunction,
        kl: KLPenalty | None = None,
        shaping: RewardShaping | None = None,
        entropy_coef: NonNegative = 0.0,
        old_logprobs: Literal["trainer", "engine"] = "trainer",
        importance_cap: Positive | None = None,
        whiten_advantages: bool = True,
        layout: Literal["shared", "separate"] = "shared",
        engine: RolloutEngine | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_importance(old_logprobs, importance_cap)
        self.engine, self.kl = engine, kl or KLPenalty()
        self.entropy_coef, self.whiten_advantages, self.importance_cap = entropy_coef, whiten_advantages, importance_cap
        self.layout, self.old_logprobs = layout, old_logprobs
        self.scorer = Scorer(reward, self.tokenizer, shaping or RewardShaping())
        self.kl_controller = self.kl.controller()
        self.reward_moments, self.part_moments = self.scorer.moments, self.scorer.part_moments
        self.actor_critic: ActorCritic | None = None
        self.reference: Reference | None = None
        self.last_rollout: Rollout | None = None
        self.last_samples: list[dict[str, Any]] = []
        self.last_val_samples: list[dict[str, Any]] = []  # of this iteration, if it was validated

    # ---- set-up

    def configure_model(self) -> None:
        """Build the policy, reference and engine, and a value function if `roles` includes a critic."""
        if self.actor_critic is not None:
            return
        policy, shared = self.load_trainable(), self.layout == "shared"
        critic = None if shared else lambda: backbone(self.new_network())
        self.actor_critic = ActorCritic.of_roles(policy, self.roles, critic)
        self.reference = Reference(policy, self.new_network, share=shared)
        for each in self.scored_by() if shared else ():
            as_reward(each).share_backbone(policy)
        self.shard(self.actor_critic)
        if self.engine is None:
            ends = end_of_sequence_ids(bare_model(policy), self.tokenizer)
            self.engine = make_engine(self.rollout, self.tokenizer.pad_token_id, ends)
        if self.old_logprobs == "engine":
            keep_from_engine(self.engine, self.actor_critic)

    def scored_by(self) -> list[RewardFunction]:
        """Return what scores responses: the reward, and whatever an algorithm adds."""
        return [self.scorer.given]

    @property
    def policy(self) -> Any:
        """Return the network that is exported."""
        assert self.actor_critic is not None
        return self.actor_critic.policy

    def trained_networks(self) -> list[torch.nn.Module]:
        """Return the policy and the critics that are separate networks."""
        return self.actor_critic.networks() if self.actor_critic is not None else []

    def on_fit_start(self) -> None:
        """Prepare the reward, and refuse rows that a network cannot read."""
        check_rows(self, self.policy, "data.max_prompt_length", self.rollout.max_new_tokens)
        self.scorer.prepare(self.device, self.rollout.max_new_tokens, self.trainer)
        refuse_within_iterations(self.trainer)

    def teardown(self, stage: str) -> None:
        """Let the engine release what it holds: the next stage of a pipeline runs in the same process."""
        if self.engine is not None:
            as_engine(self.engine).close()

    # ---- collect and credit: everything here runs without gradients, once per iteration

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Generate, score, penalise, and estimate advantages."""
        self.last_val_samples = []
        with whole_weights(self.actor_critic), self.trainer.precision_plugin.forward_context():
            prompts, generation, raw, parts, extras, learned = self.sample()
            rollout = self.evaluate(prompts, generation)
        rollout.learned = learned
        rollout.scores = self.scorer.shape(raw, rollout, self.gather)
        kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.kl.kl_kind)
        rollout.rewards = self.token_rewards(rollout, kl)
        rollout.advantages, rollout.returns = self.advantages(rollout)
        if self.old_logprobs == "trainer":
            self.record_all(weigh_by_engine(rollout, generation, self.importance_cap))
        about = (self.kl_controller.value, parts, self.rollout.samples_per_prompt, self.gather_tokens)
        self.record_all(iteration_statistics(rollout, raw, *about) | self.scorer.statistics)
        self.last_rollout, self.last_samples = rollout, samples(self.tokenizer, prompts, rollout, raw, extras)
        self.stopwatch.lap("score", self.device)
        return rollout

    def sample(self) -> Sampled:
        """Return the responses of this iteration, with their scores."""
        return self.answered(self.prompts())

    def answered(self, prompts: list[PromptRow], *stream: int | str) -> Sampled:
        """Return `samples_per_prompt` responses to each prompt, with their scores; arguments as for `generate`."""
        prompts = [row for row in prompts for _ in range(self.rollout.samples_per_prompt)]
        generation = self.generate(prompts, *stream)
        seconds = self.stopwatch.lap("rollout", self.device)
        self.record("rollout/tokens_per_second", generation.mask.sum() / seconds)
        raw = self.scores(prompts, generation)
        return Sampled(prompts, generation, raw, self.scorer.parts, self.scorer.extras, torch.ones_like(raw))

    def generate(self, prompts: list[PromptRow], *stream: int | str) -> Generation:
        """Return a response to every prompt under the current weights, a function of (seed, epoch, rank, stream)."""
        assert self.engine is not None
        self.engine.sync(self.policy)
        generator = seeded_generator(self.device, "rollout", self.seed, self.current_epoch, self.global_rank, *stream)
        return self.engine.generate([row.input_ids for row in prompts], self.rollout.sampling, generator)

    def evaluate(self, prompts: list[PromptRow], generation: Generation) -> Rollout:
        """Return the rollout with the outputs of policy, reference and critic for the responses."""
        assert self.actor_critic is not None and self.reference is not None
        settings = (self.tokenizer.pad_token_id, self.rollout.temperature, self.old_logprobs == "engine")
        return OldPolicy(self.actor_critic, self.reference, *settings)(prompts, generation, self.parts)

    def scores(self, prompts: list[PromptRow], generation: Generation) -> Tensor:
        """Return the reward of every response, [B], before normalisation and penalties."""
        return self.scorer(prompts, generation, self.device)

    def token_rewards(self, rollout: Rollout, kl: Tensor) -> Tensor:
        """Return rewards [B, T]: each score at its token or the last one, minus the coefficient times KL at each."""
        coef = self.kl_controller.value if self.kl.placement == "reward" else 0.0
        return rewards_at_tokens(rollout, kl, coef)

    def advantages(self, rollout: Rollout) -> Credit:
        """Return advantages [B, T], and returns for a critic, from the token rewards."""
        raise NotImplementedError

    # ---- validation: held-out prompts, at the end of an iteration

    @torch.inference_mode(False)  # as in `collect`: what networks keep must be able to take part in training
    @torch.no_grad()
    def validation_step(self, batch: list[PromptRow], batch_idx: int) -> HeldOut:  # type: ignore[override]
        """Sample and score a response to every held-out prompt; nothing that training reads changes."""
        with whole_weights(self.actor_critic):
            generation = self.generate(batch, "val", batch_idx)
            rollout = self.evaluate(batch, generation)
            raw = self.scores(batch, generation)
        self.record_all(held_out_statistics(rollout, raw, self.scorer.parts))
        if batch_idx == 0:
            self.last_val_samples = samples(self.tokenizer, batch, rollout, raw, self.scorer.extras)
        return HeldOut(batch, generation, rollout, raw)

    # ---- update

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """Return the algorithm's own loss of a minibatch, and statistics by their full names.

        Sums over tokens are divided by `batch.denominator`; `target_kl` is compared with `policy/approx_kl`.
        """
        raise NotImplementedError

    def loss(self, batch: Rollout) -> Loss:
        """Return the loss to minimise and the statistics to log: `objective`, entropy bonus, KL in the loss, ptx."""
        assert self.actor_critic is not None
        tokens = (batch.prompt_ids, batch.prompt_mask, batch.response_ids, batch.mask)
        out = self.actor_critic(*tokens, self.rollout.temperature, self.entropy_coef != 0, batch.allowed)
        loss, stats = self.objective(out, batch)
        if out.entropy is not None:
            loss = loss - self.average(out.entropy * batch.loss_mask, batch, self.entropy_coef)
        if self.kl.placement == "loss":
            kl = kl_estimate(out.logprobs, batch.ref_logprobs, self.kl.kl_kind) * batch.loss_mask
            loss = loss + self.average(kl, batch, self.kl_controller.value)
        if batch.pretraining is not None:
            loss = loss + self.ptx.loss(self.policy, batch.pretraining)
        return loss, {name: x.detach() for name, x in (stats | {"train/loss": loss * batch.share}).items()}

    def average(self, x: Tensor, batch: Rollout, weight: float = 1.0) -> Tensor:
        """Return `weight` times the mean over all tokens of the minibatch of x [B, T], which is 0 outside the mask."""
        return weight * x.sum() / batch.denominator

    def end_iteration(self, metrics: dict[str, Tensor]) -> None:
        """Let the KL controller react."""
        self.kl_controller.update(float(metrics["objective/kl"]), self.rollout.responses * self.trainer.world_size)

    def reference_hash(self) -> str | None:
        """Return the hash of the reference; a run refuses to continue with another one."""
        return self.reference.fingerprint() if self.reference is not None else None
