"""Training in iterations under the Trainer: a rollout, passes over it in minibatches, then a reaction to the metrics.

One iteration is one Trainer epoch, under automatic optimisation, so clipping, accumulation, precision, schedulers,
strategies and checkpoints are Lightning's own. `RolloutLoader` calls `collect`, then feeds minibatches to
`training_step`. Prompts, responses and minibatches are functions of (seed, epoch, rank).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.compat.lightning_names import validate_if_due
from rlhf_lightning.data import PromptRow
from rlhf_lightning.experience.part_gradients import Loss, PartGradients
from rlhf_lightning.experience.pretraining_mix import PretrainingMix
from rlhf_lightning.experience.schedule import go_to, scheduled_step, steps_per_iteration
from rlhf_lightning.experience.statistics import time_statistics
from rlhf_lightning.experience.stopwatch import Stopwatch
from rlhf_lightning.functional import masked_whiten
from rlhf_lightning.rollout import (
    Rollout,
    RolloutLoader,
    RolloutSettings,
    endless_order,
    rows_by_tokens,
    seeded_generator,
)
from rlhf_lightning.training.resume_points import at_epoch_start
from rlhf_lightning.training.row_limits import check_sequences
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Positive, Whole


class IterationModule(AlignmentModule):
    """Base of algorithms that train in iterations; a subclass defines `collect`, `loss`, `end_iteration` and `policy`.

    Args:
        rollout: how responses are collected.
        ptx: see PretrainingMix.
        ppo_epochs: passes over a rollout.
        num_minibatches: optimiser steps per pass.
        tokens_per_microbatch: split a micro-batch into parts of rows of similar length, each at most this many tokens
            including padding, and run forward and backward on one part after the other; null: all at once. The loss and
            its gradient do not depend on it.
        target_kl: an iteration's updates stop once a minibatch's approx_kl passes 1.5 times this (nats per token).
        seed: prompts, responses and minibatches are functions of (seed, epoch, rank).
    """

    policy: Any
    logs: ClassVar[tuple[str, ...]] = (
        *("time/rollout", "time/score", "time/update"),
        *("time/share_rollout", "time/share_score", "time/share_update"),
    )

    whole_groups: ClassVar[bool] = False
    """True if all responses to a prompt must be in one micro-batch."""

    trained_per_prompt: ClassVar[int | None] = None
    """How many of the responses to a prompt are left in the rollout that is trained on; None: all."""

    saves_mid_epoch = False

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        rollout: RolloutSettings | None = None,
        ptx: PretrainingMix | None = None,
        ppo_epochs: Count = 4,
        num_minibatches: Count = 4,
        tokens_per_microbatch: Count | None = None,
        target_kl: Positive | None = None,
        seed: Whole = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rollout, self.ptx, self.seed = rollout or RolloutSettings(), ptx or PretrainingMix(), seed
        self.ppo_epochs, self.num_minibatches, self.target_kl = ppo_epochs, num_minibatches, target_kl
        self.tokens_per_microbatch = tokens_per_microbatch
        self.stopwatch = Stopwatch()
        self._stop_updates = self._collected = False
        self._first_step = 0  # of this iteration
        self._part_gradients = PartGradients()
        self._iteration: dict[str, Tensor] = {}

    def collect(self) -> Rollout:
        """Return a rollout of the current policy."""
        raise NotImplementedError

    def loss(self, batch: Rollout) -> Loss:
        """Return the loss to minimise, and the statistics to log by their full names."""
        raise NotImplementedError

    def end_iteration(self, metrics: dict[str, Tensor]) -> None:
        """React to the metrics logged for an iteration."""

    # ---- the rollout

    def on_train_start(self) -> None:
        """Mark the start of the first iteration."""
        self.stopwatch.start(self.device)

    def train_dataloader(self) -> RolloutLoader:
        """Return the loader that collects a fresh rollout at every pass."""
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
            samples_per_prompt=self.trained_per_prompt or self.rollout.samples_per_prompt,
            whole_groups=self.whole_groups,
        )

    def _begin_iteration(self) -> Rollout:
        self._collected = True
        self._stop_updates, self._iteration, self._first_step = False, {}, self.global_step
        self.stopwatch.lap("between", self.device)
        return self.collect()

    def interrupted(self) -> str | None:
        """Return "an iteration", from its rollout to the KL controller's reaction to it; None elsewhere."""
        if self._collected:
            return "an iteration, whose rollout a resumed run would collect again with other weights"
        return at_epoch_start(self.trainer)

    def prompts(self) -> list[PromptRow]:
        """Return this process's prompts of this iteration, a function of (seed, epoch, rank)."""
        rows = self.trainer.datamodule.train_prompts  # type: ignore[attr-defined]
        return [rows[i] for i in self.prompt_order(len(rows))[self.global_rank :: self.trainer.world_size]]

    def prompt_order(self, rows: int) -> list[int]:
        """Return the row numbers of this iteration's prompts, of all processes."""
        count = self.rollout.batch_size * self.trainer.world_size
        return endless_order(rows, self.current_epoch * count, count, "prompts", self.seed)

    def parts(self, lengths: Tensor) -> list[Tensor]:
        """Return the row indices of a rollout to compute together without gradients: as many as in an update."""
        if self.tokens_per_microbatch is not None:
            return rows_by_tokens(lengths, self.tokens_per_microbatch)
        rows = torch.arange(len(lengths), device=lengths.device)
        return list(rows.chunk(self.num_minibatches * self.trainer.accumulate_grad_batches))

    # ---- updates

    def on_train_batch_start(self, batch: Rollout, batch_idx: int) -> int | None:
        """Skip the iteration's remaining minibatches once `target_kl` has been exceeded."""
        if not self._stop_updates or batch_idx % self.trainer.accumulate_grad_batches:
            return None
        validate_if_due(self.trainer)
        return -1

    def training_step(self, batch: Rollout, batch_idx: int) -> Tensor:
        """Return the loss of one minibatch."""
        drift, parts = torch.zeros((), dtype=torch.float32, device=self.device), self.microbatches(batch)
        losses = self._part_gradients.losses(self.trainer, parts, batch_idx, self.loss)
        for part, (_, stats) in zip(parts, losses, strict=True):
            self.record_all({name: (value, part.weight) for name, value in stats.items()})
            if self.target_kl is not None:
                drift += stats["policy/approx_kl"] * (part.weight / batch.weight.clamp(min=1))
        if self.target_kl is not None:
            approx_kl = self.sum_over_processes(float(drift)) / self.trainer.world_size
            self._stop_updates = self._stop_updates or approx_kl > 1.5 * self.target_kl
        return torch.stack([loss for loss, _ in losses]).sum()

    @torch.no_grad()
    def loss_again(self, batch: Rollout) -> Tensor:
        """Return the loss of a minibatch under the current weights."""
        return torch.stack([self.loss(part)[0] for part in self.microbatches(batch)]).sum()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing between `training_step` and the backward pass: the gradients of some parts are already there."""
        if not self._part_gradients.keep_gradients():
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def microbatches(self, batch: Rollout) -> list[Rollout]:
        """Split the minibatch into parts whose losses add up to its loss, the same number of parts on every process."""
        if self.tokens_per_microbatch is None:
            return [batch]
        group_size = (self.trained_per_prompt or self.rollout.samples_per_prompt) if self.whole_groups else 1
        parts = rows_by_tokens(batch.lengths, self.tokens_per_microbatch, self.max_over_processes, group_size)
        extra = [batch.pretraining, *[None] * (len(parts) - 1)]  # once per minibatch
        return [batch.select(rows, batch.denominator, more) for rows, more in zip(parts, extra, strict=True)]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Do nothing: metrics are logged once per iteration, at the epoch's end."""

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Set the schedule by iterations rather than by steps, since `target_kl` may have skipped some of them."""
        if metric is not None or not hasattr(scheduler, "last_epoch"):
            super().lr_scheduler_step(scheduler, metric)
            return
        steps = steps_per_iteration(self.trainer)
        done = steps if self.iteration_ended else self.global_step - self._first_step
        go_to(scheduler, scheduled_step(self.trainer, self.current_epoch * steps + done))

    @property
    def iteration_ended(self) -> bool:
        """Return whether all updates of this iteration are done: all minibatches, or those up to `target_kl`."""
        return self.trainer.is_last_batch or self._stop_updates

    def on_validation_start(self) -> None:
        """Mark the end of this iteration's updates."""
        self.stopwatch.lap("update", self.device)

    def on_validation_end(self) -> None:
        """Exclude the validation's time from the logged phases, but count it in the total time."""
        self.stopwatch.lap("validation", self.device)

    def on_train_epoch_end(self) -> None:
        """Advance the schedule, log the iteration, and react to it."""
        for config in self.trainer.lr_scheduler_configs:
            if config.interval == "step" and not config.reduce_on_plateau:
                self.lr_scheduler_step(config.scheduler, None)
        self.stopwatch.lap("update", self.device)
        self.record_all(time_statistics(self.stopwatch.take()))
        self._iteration = self.log_recorded(on_step=False, on_epoch=True)
        self.end_iteration(self._iteration)
        self._collected = not self.iteration_ended  # an iteration cut short by trainer.max_steps stays unfinished

    def pending_metrics(self) -> dict[str, float]:
        """Return the metrics of the iteration that has just ended."""
        return {name: float(value) for name, value in self._iteration.items()}

    # ---- over all processes

    def whiten(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return masked_whiten over the rows of all processes."""
        if self.trainer.world_size == 1:
            return masked_whiten(x, mask)
        whitened = masked_whiten(self.gather_tokens(x), self.gather_tokens(mask))
        return whitened.chunk(self.trainer.world_size)[self.global_rank][:, : x.shape[1]]

    def gather_tokens(self, x: Tensor) -> Tensor:
        """Return rows [B, T] of all processes as [world * B, max_new_tokens], padded with zeros on the right."""
        width = self.rollout.max_new_tokens - x.shape[1]
        return self.gather(torch.nn.functional.pad(x, (0, width))).flatten(0, 1)
