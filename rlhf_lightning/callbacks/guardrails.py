"""Stops a run that has gone wrong before it overwrites good checkpoints."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from rlhf_lightning.callbacks.last_loss import LastLoss
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.kl_control import KLPenalty
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive

log = logging.getLogger(__name__)

ANOTHER_POLICY = 0.5  # nats per token; bfloat16 and quantised engines stay well below


class Guardrails(Callback):
    """Ends training on a loss or gradient that is not finite.

    It also warns of a KL explosion, an entropy collapse, and an engine that samples from another policy
    (`rollout/logprob_gap` above 0.5 nats per token).

    The check runs before the optimiser step, so neither the weights nor a checkpoint are damaged: the last good
    checkpoint stays, and the error says which keys to change. The effect of the step itself shows in the loss of the
    last batch (`LastLoss`), which is recomputed before a checkpoint and when training ends.

    Args:
        kl_factor: warn when `objective/kl` exceeds this many times its target.
        kl_target: nats per response; None: the target of the module's KL controller, if there is one.
        entropy_factor: warn when `objective/entropy` falls below this share of its first value.
    """

    @checked("callbacks.guardrails")
    def __init__(
        self, kl_factor: Positive = 3.0, kl_target: Positive | None = None, entropy_factor: NonNegative = 0.1
    ) -> None:
        self.kl_factor = kl_factor
        self.kl_target = kl_target
        self.entropy_factor = entropy_factor
        self._first_entropy: float | None = None
        self._warned: dict[str, bool] = {}
        self._losses: list[Tensor] = []  # since the last optimiser step
        self._last = LastLoss()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses.clear()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # With several processes, one rank's NaN reaches every rank's gradients, and all stop together; an error on
        # one rank alone would leave the others waiting.
        if trainer.world_size == 1:
            self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        losses, self._losses = [loss.float().sum() for loss in self._losses], []
        plugin = trainer.precision_plugin
        scales = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # 16-bit loss scaling produces infinite gradients by design and skips those steps itself.
        norms = [whole(torch.nn.utils.get_total_norm(gradients))] if gradients and not scales else []
        if not losses and not norms:
            return
        read = torch.stack([*losses, *(norm.float() for norm in norms)]).tolist()  # one GPU synchronisation per step
        for value in read[: len(losses)]:
            if not math.isfinite(value):
                raise self._error(trainer, "train/loss", value)
        if norms and not math.isfinite(read[-1]):
            raise self._error(trainer, "the gradient norm", read[-1])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._last.keep(trainer, outputs, batch)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._last.look(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        if not trainer.sanity_checking and loss is not None and not math.isfinite(float(loss)):
            raise self._error(trainer, "val/loss", float(loss))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._watch(trainer, pl_module)  # for the previous epoch: its metrics are logged after the callbacks' epoch end

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last.look(trainer, pl_module)
        self._watch(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return {
            "first_entropy": self._first_entropy,
            "warned": dict(self._warned),
            "first_loss": self._last.first,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first_entropy = state_dict["first_entropy"]
        self._warned = dict(state_dict["warned"])
        self._last.first = state_dict.get("first_loss")

    def _watch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logged, watched = trainer.callback_metrics, ("objective/kl", "objective/entropy", "rollout/logprob_gap")
        metrics = {name: float(logged[name]) for name in watched if name in logged}
        where = f"after epoch {trainer.current_epoch} (step {trainer.global_step})"
        kl, target = metrics.get("objective/kl"), self.kl_target or _kl_target(pl_module)
        if kl is not None and target:
            self._warn(
                "kl",
                kl > self.kl_factor * target,
                f"objective/kl is {kl:.3g} nats per response {where}, {kl / target:.1f} times its target {target:.3g}: "
                "the policy is leaving the reference; lower optimizer.lr or raise algorithm.kl.coef",
            )
        entropy = metrics.get("objective/entropy")
        if entropy is not None:
            self._first_entropy = entropy if self._first_entropy is None else self._first_entropy
            self._warn(
                "entropy",
                entropy < self.entropy_factor * self._first_entropy,
                f"objective/entropy is {entropy:.3g} {where}, down from {self._first_entropy:.3g}: the policy keeps "
                "giving the same answer; raise algorithm.kl.coef or algorithm.entropy_coef, or lower optimizer.lr",
            )

        gap = metrics.get("rollout/logprob_gap")
        if gap is not None:
            self._warn(
                "gap",
                gap > ANOTHER_POLICY,
                f"rollout/logprob_gap is {gap:.3g} nats per token {where}: the rollout engine samples from other "
                "weights than the trainer's; start the server of rollout.server again, with the model of model.path",
            )

    def _warn(self, name: str, wrong: bool, message: str) -> None:
        """Warn once each time a metric goes wrong, not once per epoch while it stays wrong."""
        if wrong and not self._warned.get(name, False):
            log.warning(message)
        self._warned[name] = wrong

    def _error(self, trainer: Trainer, metric: str, value: float) -> UserError:
        found = f"{metric} is {value} at step {trainer.global_step} (epoch {trainer.current_epoch}); training stopped"
        if trainer.global_step == 0:
            return UserError(
                f"{found} before the first optimiser step, so optimizer.lr is not the cause: look for numbers in the "
                "data, the rewards, or the settings of algorithm and rollout that are too large or too small, and try "
                "trainer.precision=32-true or bf16-mixed"
            )
        if not _has_checkpoint(trainer):
            return UserError(
                f"{found} before the weights changed; train again with a lower optimizer.lr, a smaller "
                "trainer.gradient_clip_val, or trainer.precision=32-true or bf16-mixed"
            )
        return UserError(
            f"{found} before the weights changed, and the last checkpoint is good: resume with ckpt=last and "
            "a lower optimizer.lr, or with resume_anyway=true and a smaller trainer.gradient_clip_val or "
            "trainer.precision=32-true or bf16-mixed"
        )


def _has_checkpoint(trainer: Trainer) -> bool:
    """Return whether the run has written a checkpoint, or has begun from one."""
    written = (getattr(each, "last_model_path", "") for each in trainer.checkpoint_callbacks)
    return any(written) or trainer.ckpt_path is not None


def whole(x: Tensor) -> Tensor:
    """Return a number that is sharded over the processes as a whole."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def _kl_target(pl_module: LightningModule) -> float | None:
    """Return the target of the module's KL controller; None for a fixed coefficient."""
    kl = getattr(pl_module, "kl", None)
    return kl.target if isinstance(kl, KLPenalty) and kl.kind != "fixed" else None
