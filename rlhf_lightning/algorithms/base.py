"""The base class of all algorithms: network, optimiser, metrics, checkpoints of what is trained, export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.models import export_model, shard
from rlhf_lightning.models.precision import (
    WEIGHTS,
    KeepsTypes,
    cast_weights,
    check_precision,
    check_weights,
    default_type,
    follow_casts,
)
from rlhf_lightning.training.optimisation import OptimizerFactory, SchedulerFactory, optimisation
from rlhf_lightning.training.origin import check_origin, origin
from rlhf_lightning.training.recording import RecordingModule
from rlhf_lightning.training.resume_points import interrupted, mark
from rlhf_lightning.training.resumed_state import keep_base_hooks, restore_state, resumed_state
from rlhf_lightning.training.row_limits import check_rows
from rlhf_lightning.training.trainable import check_blown_up, check_trains


class AlignmentModule(KeepsTypes, RecordingModule):
    """A LightningModule that trains, logs and exports a Hugging Face model.

    A subclass builds its networks in `configure_model` (Lightning calls it once the strategy is known; call it by hand
    outside a Trainer) and keeps the one to export in `self.model`.

    Args:
        model: called in `configure_model`; returns the network to train.
        tokenizer: the model's tokenizer, exported with it.
        optimizer: called with the trainable parameters; returns the optimiser.
        scheduler: called with `optimizer=` and, if it has that argument, `num_training_steps=`; stepped once per
            optimiser step.
    """

    data: ClassVar[str]
    """The kind of rows that it trains on: sft, preference, unpaired, prompts, steps, rewarded or safety."""

    title: ClassVar[str]
    """Its name in text, such as a model card."""

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    """The networks that take part, the trained one first.

    policy, reference, critic, cost_critic, reward, cost, q_heads, teacher.
    """

    logs: ClassVar[tuple[str, ...]] = ("lr", "train/loss")
    """The metrics that it logs beyond those of its base classes; docs/metrics.md defines them."""

    resumes: ClassVar[tuple[str, ...]] = ()
    """The attributes that a checkpoint stores besides the trained weights, including those of base classes.

    Each has a `state_dict`, or is None, a number, text, a tensor, or a list, tuple or dict of these, and is the same on
    every process.
    """

    saves_mid_epoch = True
    """True if training can resume from a checkpoint saved within an epoch."""

    blown_up = 100.0
    """The weights count as blown up once the loss exceeds this many times the first loss."""

    def __init__(
        self,
        model: Callable[[], Any],
        tokenizer: PreTrainedTokenizerBase,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
    ) -> None:
        super().__init__()
        self.load_model = model
        self.tokenizer = tokenizer
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        self.model: Any = None
        self.accepts_other_rows = False  # set while a checkpoint is being resumed
        self.strict_loading = False  # frozen weights are not in the checkpoint

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        keep_base_hooks(cls, AlignmentModule)

    def configure_model(self) -> None:
        """Build the networks; called once."""
        if self.model is None:
            self.model = self.load_trainable()
            self.shard(self.model)

    def load_trainable(self) -> Any:
        """Return the network to train.

        Raises:
            UserError: nothing, or next to nothing, of it is trainable.
        """
        network = self.new_network()
        check_trains(network)
        return network

    def new_network(self) -> Any:
        """Load the network again, with its weights in the dtype that the trainer's precision implies.

        Raises:
            UserError: a precision or weight dtype that cannot be trained in.
        """
        precision = self.precision
        check_precision(precision)
        with default_type(torch.float32):
            network = self._loaded()
        dtype = WEIGHTS[precision]
        if dtype is not None:
            cast_weights(network, dtype)
        check_weights(network, precision)
        return network

    def _loaded(self) -> Any:
        """Return what `model` makes. Raises UserError if a user's own class returns something other than a network."""
        make = getattr(self.load_model, "func", self.load_model)
        if str(getattr(make, "__module__", "")).startswith("rlhf_lightning."):
            return self.load_model()
        with blaming("model._target_: no network can be built with these settings"):
            network = self.load_model()
        if not isinstance(network, nn.Module):
            raise UserError(f"model._target_: makes a {type(network).__name__}; must make a network (nn.Module)")
        return network

    def trained_networks(self) -> list[nn.Module]:
        """Return the networks that are trained, the policy or reward model first."""
        return [self.model] if self.model is not None else []

    @property
    def precision(self) -> str:
        """Return the trainer's precision; without a trainer, Lightning's default."""
        try:
            return str(self.trainer.precision)
        except RuntimeError:
            return "32-true"

    @property
    def strategy(self) -> Any:
        """Return the trainer's strategy; None without a trainer."""
        try:
            return self.trainer.strategy
        except RuntimeError:
            return None

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Keep heads and adapters in float32, except under DeepSpeed, which uses one dtype with float32 masters."""
        if isinstance(self.strategy, DeepSpeedStrategy):
            follow_casts(self)
        return super().guard_casts()

    def shard(self, network: Any) -> None:
        """Shard a network over the processes if the strategy is FSDP2; call it once the network is complete."""
        if self.device_mesh is not None:
            gathered = torch.bfloat16 if self.precision == "bf16-mixed" else None
            shard(network, self.device_mesh["data_parallel"], gathered)

    def on_fit_start(self) -> None:
        """Refuse rows that the model cannot read, now that both are known."""
        check_rows(self, self.model, "data.max_length")

    def configure_optimizers(self) -> Any:
        """Return the optimiser of all trainable parameters and the scheduler over its steps."""
        trained = [p for p in self.parameters() if p.requires_grad]
        return optimisation(self.trainer, trained, self.make_optimizer, self.make_scheduler)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Free the gradients after the step: Lightning would keep them until the end of the next forward pass."""
        self.rate = torch.tensor(float(optimizer.param_groups[0]["lr"]), dtype=torch.float32)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.optimizer_zero_grad(epoch, batch_idx, optimizer)

    @torch.no_grad()
    def loss_again(self, batch: Any) -> Tensor:
        """Return the loss of a batch that was trained on, under the current weights; nothing is recorded."""
        self._records = False
        try:
            loss = self.training_step(batch, 0)
            assert isinstance(loss, Tensor)
            return loss
        finally:
            self._records = True

    def interrupted(self) -> str | None:
        """Return what the run is in the middle of, where it cannot be resumed exactly; None elsewhere."""
        return interrupted(self.trainer)

    def reference_hash(self) -> str | None:
        """Return the hash of the frozen reference network of this run; None if there is none to check."""
        return None

    def teacher_hash(self) -> str | None:
        """Return the hash of the frozen teacher of this run; None if there is none."""
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save what is trained (frozen weights are loaded again), what `resumes` names, and metrics not yet logged."""
        if "origin" in checkpoint:  # already done: see `__init_subclass__`
            return
        check_blown_up(self)
        mark(checkpoint, self.interrupted())
        checkpoint["origin"] = origin(self)
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        checkpoint["resumes"] = resumed_state(self)
        checkpoint |= self.recorded_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what `resumes` names, and the metrics recorded since they were last logged.

        Raises:
            UserError: the checkpoint belongs to another algorithm, network or data, or a run cannot resume from it
                exactly.
        """
        if checkpoint.get("restored") == id(self):  # already done: see `__init_subclass__`
            return
        checkpoint["restored"] = id(self)
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_origin(self, checkpoint)
            if reason := checkpoint.get("cannot_resume"):
                raise UserError(f"ckpt: {reason}; resume from another one (ckpt=last finds the newest that is whole)")
        restore_state(self, checkpoint.get("resumes", {}))
        self.restore_recorded(checkpoint)

    def export(self, folder: str | Path) -> None:
        """Write the trained model (or only its adapter) and its tokenizer as a Hugging Face folder."""
        export_model(self.trained_networks()[0], self.tokenizer, folder)
