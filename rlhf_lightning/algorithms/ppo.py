"""Proximal policy optimisation from a reward and a KL penalty.

One iteration is one Trainer epoch: `RolloutLoader` calls `collect`, then feeds minibatches to `training_step`; the
epoch's end updates the KL controller. Deviations from Ziegler et al. 2019 and Ouyang et al. 2022: responses end at the
EOS; losses are means over the valid tokens of the whole minibatch; whitening is over the whole iteration.

Small methods to override: `scores`, `token_rewards`, `advantages`, `loss`, and `collect` above them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import PromptRow
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.engine_gap import importance_weights, record_gap
from rlhf_lightning.experience.groups import group_statistics
from rlhf_lightning.experience.kl_control import KLPenalty
from rlhf_lightning.experience.old_policy import evaluate_tokens, keep_from_engine
from rlhf_lightning.experience.part_gradients import PartGradients
from rlhf_lightning.experience.pretraining_mix import PretrainingMix
from rlhf_lightning.experience.reward_shaping import RewardShaping, RunningMoments, shape_scores
from rlhf_lightning.experience.schedule import go_to, scheduled_step, steps_per_iteration
from rlhf_lightning.experience.score_checks import ConstantScores, check_scale
from rlhf_lightning.experience.statistics import record_losses, record_rollout, record_times, samples
from rlhf_lightning.experience.stopwatch import Stopwatch
from rlhf_lightning.functional import (
    generalized_advantage_estimate,
    kl_estimate,
    masked_whiten,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
)
from rlhf_lightning.models import ActorCritic, Reference, export_model, predict_tokens, whole_weights
from rlhf_lightning.models.forward import backbone, bare_model
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rewards import RewardFunction, score_samples
from rlhf_lightning.rollout import (
    Generation,
    Rollout,
    RolloutEngine,
    RolloutLoader,
    RolloutSettings,
    SamplingSettings,
    endless_order,
    make_engine,
    rows_by_tokens,
    seeded_generator,
)
from rlhf_lightning.training.ranges import check_range
from rlhf_lightning.training.resume_points import at_epoch_start
from rlhf_lightning.training.row_limits import check_rows, check_sequences


class PPOModule(AlignmentModule):
    """The clipped objective of Schulman et al. 2017 on responses, with a value function and a KL penalty.

        loss = policy + value_coef * value - entropy_coef * entropy [+ kl * k2] [+ ptx]

    Args:
        reward: scores whole responses.
        rollout: how responses are collected.
        kl, shaping, ptx: see KLPenalty, RewardShaping, PretrainingMix.
        clip_range: policy ratios are clipped to 1 +- clip_range.
        value_clip_range: new values are clipped to the old ones +- this; null: no clipping.
        value_coef, entropy_coef: weights of the value loss and of the entropy bonus.
        gamma, lam: discount and GAE lambda, in [0, 1].
        ppo_epochs: passes over a rollout.
        num_minibatches: optimiser steps per pass.
        tokens_per_microbatch: a micro-batch is computed in parts of rows of similar length, each of at most so many
            tokens with its padding, forward and backward one after the other; null: at once. The loss and its gradient
            do not depend on it.
        target_kl: an iteration's updates stop once a minibatch's approx_kl passes 1.5 times this (nats per token).
        old_logprobs: whose are the log-probabilities that ratios and penalties start from: `trainer`, computed again;
            `engine`, those that the native engine sampled with, and in layout `shared` its values.
        importance_cap: tokens count by min(pi_old / pi_engine, cap) in the policy loss, where the engine that sampled
            computes other probabilities than the trainer; null: all count 1.
        whiten_advantages: mean 0 and std 1 over the valid tokens of the iteration, all processes.
        layout: `shared`, the value is a head on the policy's hidden states; `separate`, a critic of its own.
        seed: prompts, responses and minibatches are functions of (seed, epoch, rank).
        engine: generates; null: the one that `rollout` describes.
    """

    data: ClassVar[str] = "prompts"
    title: ClassVar[str] = "proximal policy optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference", "critic", "reward")
    logs: ClassVar[tuple[str, ...]] = (
        *("kl/coef", "objective/scores", "objective/kl", "objective/entropy", "objective/rlhf_reward"),
        *("policy/loss", "policy/approx_kl", "policy/clip_fraction", "policy/ratio_mean", "policy/ratio_max"),
        *("value/loss", "value/clip_fraction", "value/explained_variance"),
        *("rollout/response_length", "rollout/eos_rate", "rollout/tokens_per_second", "rollout/logprob_gap"),
        *("rollout/logprob_gap_max", "rollout/importance_weight", "rollout/importance_capped"),
        *("rollout/group_spread", "rollout/group_std"),
        *("time/rollout", "time/score", "time/update"),
        *("time/share_rollout", "time/share_score", "time/share_update"),
    )

    whole_groups: ClassVar[bool] = False
    """Whether the responses to a prompt have to be in one micro-batch."""

    saves_mid_epoch = False
    blown_up = 1e4  # returns that become ten times larger make the value loss a hundred times larger

    def __init__(
        self,
        *args: Any,
        reward: RewardFunction,
        rollout: RolloutSettings | None = None,
        kl: KLPenalty | None = None,
        shaping: RewardShaping | None = None,
        ptx: PretrainingMix | None = None,
        clip_range: float = 0.2,
        value_clip_range: float | None = 0.2,
        value_coef: float = 0.1,
        entropy_coef: float = 0.0,
        gamma: float = 1.0,
        lam: float = 0.95,
        ppo_epochs: int = 4,
        num_minibatches: int = 4,
        tokens_per_microbatch: int | None = None,
        target_kl: float | None = None,
        old_logprobs: Literal["trainer", "engine"] = "trainer",
        importance_cap: float | None = None,
        whiten_advantages: bool = True,
        layout: Literal["shared", "separate"] = "shared",
        seed: int = 0,
        engine: RolloutEngine | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("> 0", clip_range=clip_range, value_clip_range=value_clip_range, target_kl=target_kl)
        check_range("> 0", importance_cap=importance_cap)
        check_range(">= 0", value_coef=value_coef, entropy_coef=entropy_coef)
        check_range("in [0, 1]", gamma=gamma, lam=lam)
        check_range(">= 1", ppo_epochs=ppo_epochs, num_minibatches=num_minibatches)
        check_range(">= 1", tokens_per_microbatch=tokens_per_microbatch)
        self.reward = reward
        self.rollout, self.kl = rollout or RolloutSettings(), kl or KLPenalty()
        self.shaping, self.ptx = shaping or RewardShaping(), ptx or PretrainingMix()
        self.clip_range, self.value_clip_range = clip_range, value_clip_range
        self.value_coef, self.entropy_coef = value_coef, entropy_coef
        self.gamma, self.lam, self.whiten_advantages = gamma, lam, whiten_advantages
        self.ppo_epochs, self.num_minibatches, self.target_kl = ppo_epochs, num_minibatches, target_kl
        self.tokens_per_microbatch, self.importance_cap = tokens_per_microbatch, importance_cap
        self.layout, self.seed, self.old_logprobs = layout, seed, old_logprobs
        self.engine = engine
        self.kl_controller = self.kl.controller()
        self.reward_moments = RunningMoments()
        self._constant_scores = ConstantScores()
        self.stopwatch = Stopwatch()
        self.actor_critic: ActorCritic | None = None
        self.reference: Reference | None = None
        self.last_rollout: Rollout | None = None
        self.last_samples: list[dict[str, Any]] = []
        self._stop_updates = self._collected = False
        self._first_step = 0  # of this iteration
        self._part_gradients = PartGradients()
        self._iteration: dict[str, Tensor] = {}

    # ---- set-up

    def configure_model(self) -> None:
        """Policy, value function, reference and engine."""
        if self.actor_critic is not None:
            return
        policy = self.load_trainable()
        critic = backbone(self.new_network()) if self.layout == "separate" else None
        self.actor_critic = ActorCritic(policy, critic)
        shared = self.layout == "shared"
        self.reference = Reference(policy, self.new_network, share=shared)
        if shared and hasattr(self.reward, "share_backbone"):
            self.reward.share_backbone(policy)
        self.shard(self.actor_critic)
        if self.engine is None:
            ends = bare_model(policy).generation_config.eos_token_id
            eos_ids = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
            self.engine = make_engine(self.rollout, self.tokenizer.pad_token_id, list(eos_ids))
        if self.old_logprobs == "engine":
            keep_from_engine(self.engine, self.actor_critic)

    @property
    def policy(self) -> Any:
        """The network that is exported."""
        assert self.actor_critic is not None
        return self.actor_critic.policy

    def trained_networks(self) -> list[torch.nn.Module]:
        """Return the policy and, if it is a network of its own, the critic."""
        networks = (self.actor_critic.policy, self.actor_critic.critic) if self.actor_critic is not None else ()
        return [network for network in networks if network is not None]

    def on_fit_start(self) -> None:
        """Move the reward's network to the policy's device, and refuse rows that a network cannot read."""
        check_rows(self, self.policy, "data.max_prompt_length", self.rollout.max_new_tokens)
        if hasattr(self.reward, "check_length"):
            self.reward.check_length(self.rollout.max_new_tokens)
        if hasattr(self.reward, "to"):
            self.reward.to(self.device)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "val_prompts", None) and not is_overridden("validation_step", self):
            raise UserError(
                "data.val or data.val_fraction: PPO has no validation; leave both out, and compare policies on "
                "held-out prompts with rlhf-evaluate"
            )
        for callback in self.trainer.checkpoint_callbacks:
            if getattr(callback, "_every_n_train_steps", 0) or getattr(callback, "_train_time_interval", None):
                raise UserError(
                    "callbacks: PPO is checkpointed at the end of an iteration; use every_n_epochs instead of "
                    "every_n_train_steps or train_time_interval"
                )

    def on_train_start(self) -> None:
        """The first iteration begins."""
        self.stopwatch.start(self.device)

    def teardown(self, stage: str) -> None:
        """Let the engine give back what it holds: the next stage of a pipeline runs in the same process."""
        close = getattr(self.engine, "close", None)
        if close is not None:
            close()

    def train_dataloader(self) -> RolloutLoader:
        """The loader whose every pass is a fresh rollout."""
        self.ptx.load(self.tokenizer, self.seed)
        check_sequences(self, self.policy, self.ptx.rows, "algorithm.ptx.max_length")
        steps = self.ppo_epochs * self.num_minibatches
        return RolloutLoader(
            self._begin_iteration,
            order=lambda: seeded_generator("cpu", "minibatches", self.seed, self.current_epoch, self.global_rank),
            batch_size=self.rollout.batch_size,
            ppo_epochs=self.ppo_epochs,
            num_minibatches=self.num_minibatches,
            accumulate=self.trainer.accumulate_grad_batches,
            world_size=self.trainer.world_size,
            total=self.sum_over_processes,
            pretraining=lambda step: self.ptx.batch(
                self.current_epoch * steps + step, self.global_rank, self.trainer.world_size
            ),
            samples_per_prompt=self.rollout.samples_per_prompt,
            whole_groups=self.whole_groups,
        )

    def _begin_iteration(self) -> Rollout:
        self._collected = True
        return self.collect()

    def interrupted(self) -> str | None:
        """An iteration, from its rollout to the KL controller's reaction to it."""
        if self._collected:
            return "an iteration, whose rollout a resumed run would collect again with other weights"
        return at_epoch_start(self.trainer)

    # ---- collection: everything here runs without gradients, once an iteration

    @torch.no_grad()
    def collect(self) -> Rollout:
        """Generate, score, penalise, estimate advantages."""
        assert self.engine is not None
        self._stop_updates, self._iteration, self._first_step = False, {}, self.global_step
        self.stopwatch.lap("between", self.device)
        prompts = [row for row in self.prompts() for _ in range(self.rollout.samples_per_prompt)]
        with whole_weights(self.actor_critic), self.trainer.precision_plugin.forward_context():
            self.engine.sync(self.policy)
            generator = seeded_generator(self.device, "rollout", self.seed, self.current_epoch, self.global_rank)
            sampling = SamplingSettings(self.rollout.max_new_tokens, self.rollout.temperature)
            generation = self.engine.generate([row.input_ids for row in prompts], sampling, generator)
            self.stopwatch.lap("rollout", self.device)
            rollout = evaluate_tokens(self, prompts, generation)
            raw = self.scores(prompts, generation)
        rollout.scores = self.shape(raw, generation.ended)
        check_scale(rollout.scores, self.reward_key)
        kl = kl_estimate(rollout.logprobs, rollout.ref_logprobs, self.kl.kl_kind)
        rollout.rewards = self.token_rewards(rollout, kl)
        rollout.advantages, rollout.returns = self.advantages(rollout)
        if self.old_logprobs == "trainer":
            record_gap(self, rollout, generation)
        if self.importance_cap is not None:
            rollout.advantages = rollout.advantages * importance_weights(self, rollout, generation, self.importance_cap)
        record_rollout(self, rollout, raw, self.stopwatch.seconds["rollout"])
        for name, (value, groups) in group_statistics(raw, self.rollout.samples_per_prompt).items():
            self.record(name, value, groups)
        self.last_rollout, self.last_samples = rollout, samples(self.tokenizer, prompts, rollout, raw)
        self.stopwatch.lap("score", self.device)
        return rollout

    def prompts(self) -> list[PromptRow]:
        """This process's prompts of this iteration, a function of (seed, epoch, rank)."""
        rows = self.trainer.datamodule.train_prompts  # type: ignore[attr-defined]
        world = self.trainer.world_size
        count = self.rollout.batch_size * world
        order = endless_order(len(rows), self.current_epoch * count, count, "prompts", self.seed)
        return [rows[i] for i in order[self.global_rank :: world]]

    def scores(self, prompts: list[PromptRow], generation: Generation) -> Tensor:
        """The reward of every response [B], before normalisation and penalties."""
        ended = generation.ended.tolist()
        scores = score_samples(self.reward, self.tokenizer, prompts, generation.responses(), ended)
        self._constant_scores.look(scores, self.reward_key)
        return to_device(scores, self.device, torch.float32)

    @property
    def reward_key(self) -> str:
        """Where the reward was named, for messages."""
        return str(getattr(self.reward, "key", "reward"))

    def shape(self, scores: Tensor, ended: Tensor) -> Tensor:
        """Normalise, clip, and charge for a missing EOS."""
        if self.shaping.normalize:
            self.reward_moments.update(self.gather(scores).flatten())
        return shape_scores(scores, ended, self.shaping, self.reward_moments)

    def token_rewards(self, rollout: Rollout, kl: Tensor) -> Tensor:
        """Rewards [B, T]: the score on the last valid token, minus the coefficient times the KL of every token."""
        coef = self.kl_controller.value if self.kl.placement == "reward" else 0.0
        return token_rewards(rollout.scores, kl, rollout.mask, coef)

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """GAE advantages (whitened) and returns, both [B, T]."""
        advantages, returns = generalized_advantage_estimate(
            rollout.rewards, rollout.values, rollout.mask, self.gamma, self.lam
        )
        if self.whiten_advantages:
            advantages = self.whiten(advantages, rollout.mask)
        return advantages, returns

    def whiten(self, x: Tensor, mask: Tensor) -> Tensor:
        """masked_whiten over the rows of all processes."""
        if self.trainer.world_size == 1:
            return masked_whiten(x, mask)
        whitened = masked_whiten(self.gather_tokens(x), self.gather_tokens(mask))
        return whitened.chunk(self.trainer.world_size)[self.global_rank][:, : x.shape[1]]

    def gather_tokens(self, x: Tensor) -> Tensor:
        """Rows [B, T] of all processes, [world * B, max_new_tokens], with zeros on the right."""
        width = self.rollout.max_new_tokens - x.shape[1]
        return self.gather(torch.nn.functional.pad(x, (0, width))).flatten(0, 1)

    # ---- updates

    def on_train_batch_start(self, batch: Rollout, batch_idx: int) -> int | None:
        """Leave the iteration's remaining minibatches out once `target_kl` was passed."""
        boundary = batch_idx % self.trainer.accumulate_grad_batches == 0
        return -1 if self._stop_updates and boundary else None

    def training_step(self, batch: Rollout, batch_idx: int) -> Tensor:
        """The clipped objective of one minibatch."""
        drift, parts = torch.zeros((), dtype=torch.float32, device=self.device), self.microbatches(batch)
        losses = self._part_gradients.losses(self, parts, batch_idx)
        for part, (_, stats) in zip(parts, losses, strict=True):
            record_losses(self, stats, part.mask.sum())
            drift += stats["policy/approx_kl"] * (part.mask.sum() / batch.mask.sum())
        if self.target_kl is not None:
            approx_kl = self.sum_over_processes(float(drift)) / self.trainer.world_size
            self._stop_updates = self._stop_updates or approx_kl > 1.5 * self.target_kl
        return torch.stack([loss for loss, _ in losses]).sum()

    @torch.no_grad()
    def loss_again(self, batch: Rollout) -> Tensor:
        """Return the loss of a minibatch with the weights as they are now."""
        return torch.stack([self.loss(part)[0] for part in self.microbatches(batch)]).sum()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Not between `training_step` and the backward pass, where some parts' gradients are there already."""
        if not self._part_gradients.keep_gradients():
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def microbatches(self, batch: Rollout) -> list[Rollout]:
        """The minibatch in parts whose losses add up to its loss, equally many on every process."""
        if self.tokens_per_microbatch is None:
            return [batch]
        group_size = self.rollout.samples_per_prompt if self.whole_groups else 1
        parts = rows_by_tokens(batch.lengths, self.tokens_per_microbatch, self.max_over_processes, group_size)
        extra = [batch.pretraining, *[None] * (len(parts) - 1)]  # once a minibatch
        return [batch.select(rows, batch.denominator, more) for rows, more in zip(parts, extra, strict=True)]

    def loss(self, batch: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to descend, and the statistics to log by their full names."""
        assert self.actor_critic is not None
        out = self.actor_critic(
            batch.prompt_ids,
            batch.prompt_mask,
            batch.response_ids,
            batch.mask,
            temperature=self.rollout.temperature,
            with_entropy=self.entropy_coef != 0,
        )
        policy_loss, policy = ppo_policy_loss(
            out.logprobs, batch.logprobs, batch.advantages, batch.mask, self.clip_range, denominator=batch.denominator
        )
        value_loss, value = ppo_value_loss(
            out.values, batch.values, batch.returns, batch.mask, self.value_clip_range, denominator=batch.denominator
        )
        loss = policy_loss + self.value_coef * value_loss
        if out.entropy is not None:
            loss = loss - self.entropy_coef * out.entropy.sum() / batch.denominator
        if self.kl.placement == "loss":
            kl = kl_estimate(out.logprobs, batch.ref_logprobs, self.kl.kl_kind) * batch.mask
            loss = loss + self.kl_controller.value * kl.sum() / batch.denominator
        if batch.pretraining is not None:
            loss = loss + self.ptx.coef * self.pretraining_loss(batch)
        share = batch.denominator / batch.mask.sum()  # back to means over this batch's tokens
        stats = {f"policy/{name}": x for name, x in policy.items()} | {f"value/{name}": x for name, x in value.items()}
        stats |= {"policy/loss": policy_loss * share, "value/loss": value_loss * share, "train/loss": loss * share}
        return loss, {name: x.detach() for name, x in stats.items()}

    def pretraining_loss(self, batch: Rollout) -> Tensor:
        """Mean negative log-likelihood of the PPO-ptx rows; every micro-batch of a step carries the same rows."""
        assert batch.pretraining is not None
        rows = batch.pretraining
        return -predict_tokens(self.policy, rows.input_ids, rows.labels != -100).logprobs.sum() / rows.denominator

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """PPO logs once an iteration, at the epoch's end."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Go to where the run is on the schedule, by iterations: `target_kl` may have left out steps of them."""
        if metric is not None or not hasattr(scheduler, "last_epoch"):
            super().lr_scheduler_step(scheduler, metric)
            return
        steps = steps_per_iteration(self.trainer)
        done = steps if self.iteration_ended else self.global_step - self._first_step
        go_to(scheduler, scheduled_step(self.trainer, self.current_epoch * steps + done))

    @property
    def iteration_ended(self) -> bool:
        """Whether all of this iteration's updates are done: its minibatches, or those up to `target_kl`."""
        return self.trainer.is_last_batch or self._stop_updates

    def on_train_epoch_end(self) -> None:
        """Log the iteration, then let schedule and KL controller react to it."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau:
                self.lr_scheduler_step(config.scheduler, None)
        self.record("kl/coef", self.kl_controller.value)
        self.stopwatch.lap("update", self.device)
        record_times(self, self.stopwatch.take())
        self._iteration = self.log_recorded(on_step=False, on_epoch=True)
        episodes = self.rollout.responses * self.trainer.world_size
        self.kl_controller.update(float(self._iteration["objective/kl"]), episodes)
        self._collected = not self.iteration_ended  # one that trainer.max_steps has cut short stays unfinished

    def pending_metrics(self) -> dict[str, float]:
        """Those of the iteration that has just ended."""
        return {name: float(value) for name, value in self._iteration.items()}

    def sum_over_processes(self, value: float) -> float:
        """The same number on every process."""
        if self.trainer.world_size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float32, device=self.device)
        return float(self.trainer.strategy.reduce(tensor, reduce_op="sum"))

    def max_over_processes(self, value: int) -> int:
        """The largest one, on every process."""
        if self.trainer.world_size == 1:
            return value
        return int(self.gather(torch.tensor(value, device=self.device)).max())

    # ---- checkpoints and export

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Trained weights, KL controller, reward moments, and the hash of the reference."""
        super().on_save_checkpoint(checkpoint)
        assert self.reference is not None
        checkpoint["ppo"] = {
            "kl_controller": self.kl_controller.state_dict(),
            "reward_moments": self.reward_moments.state_dict(),
            "reference": self.reference.fingerprint(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the above.

        Raises:
            UserError: the reference is not the one the run began with.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["ppo"]
        self.kl_controller.load_state_dict(state["kl_controller"])
        self.reward_moments.load_state_dict(state["reward_moments"])
        assert self.reference is not None
        if self.reference.fingerprint() != state["reference"]:
            raise UserError("model.path: the reference differs from the one of the checkpoint; resume from the same")

    def export(self, folder: Any) -> None:
        """Write the policy, or its adapter alone, and its tokenizer as a Hugging Face folder."""
        export_model(self.policy, self.tokenizer, folder)
