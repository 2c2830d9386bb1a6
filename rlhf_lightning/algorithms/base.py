"""What the four algorithms share: optimiser and scheduler, metrics, checkpoints of what is trained, export."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.compat.lightning_names import let_lightning_clip
from rlhf_lightning.errors import ENDLESS_SCHEDULE, BlownUpError, UserError, blaming
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
from rlhf_lightning.models.saving import check_weights as check_size
from rlhf_lightning.models.sharding import local
from rlhf_lightning.training.lost_updates import warn_of_lost_updates
from rlhf_lightning.training.origin import check_origin, origin
from rlhf_lightning.training.processes import of_every_process, of_this_process
from rlhf_lightning.training.resume_points import interrupted, mark
from rlhf_lightning.training.row_limits import check_rows
from rlhf_lightning.training.trainable import check_trains
from rlhf_lightning.training.weighted_mean import Maximum, WeightedMean, on_host

log = logging.getLogger(__name__)

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
SchedulerFactory = Callable[..., LRScheduler]


class AlignmentModule(KeepsTypes, L.LightningModule):
    """A LightningModule over a Hugging Face model that trains, logs and exports it.

    A subclass builds its networks in `configure_model` (Lightning calls it once the strategy is known; call it by hand
    outside a Trainer) and keeps the one to export in `self.model`.

    Args:
        model: returns the network to train; called in `configure_model`.
        tokenizer: of that model; exported with it.
        optimizer: takes the trainable parameters.
        scheduler: takes `optimizer=` and, if it has that argument, `num_training_steps=`; stepped every optimiser step.
    """

    data: ClassVar[str]
    """The kind of rows that it trains on: sft, preference, unpaired, prompts, steps or rewarded."""

    title: ClassVar[str]
    """What it is called in text, such as a model card."""

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    """The networks that take part, the one that is trained first: policy, reference, critic, reward."""

    logs: ClassVar[tuple[str, ...]] = ("lr", "train/loss")
    """The names that it logs beside those of its base classes; docs/metrics.md defines them."""

    saves_mid_epoch = True
    """Whether a checkpoint within an epoch can be resumed from."""

    blown_up = 100.0
    """How many times its first loss a loss has to be for the weights to count as blown up."""

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
        self.metrics = nn.ModuleDict()
        self.maxima = nn.ModuleDict()
        self.rate: Tensor | None = None  # the learning rate of the last optimiser step
        self.accepts_other_rows = False  # of a checkpoint that is resumed
        self.strict_loading = False  # frozen weights are not in the checkpoint
        self._records = True

    def configure_model(self) -> None:
        """Build the networks, once."""
        if self.model is None:
            self.model = self.load_trainable()
            self.shard(self.model)

    def load_trainable(self) -> Any:
        """The network to train.

        Raises:
            UserError: nothing or next to nothing of it is trainable.
        """
        network = self.new_network()
        check_trains(network)
        return network

    def new_network(self) -> Any:
        """Load the network once more, with its weights in the type that the trainer's precision gives them.

        Raises:
            UserError: a precision, or a type of weights, that does not train.
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
        """What `model` makes. Raises UserError if a class of the user's own makes something else than a network."""
        make = getattr(self.load_model, "func", self.load_model)
        if str(getattr(make, "__module__", "")).startswith("rlhf_lightning."):
            return self.load_model()
        with blaming("model._target_: it cannot make a network with these settings"):
            network = self.load_model()
        if not isinstance(network, nn.Module):
            raise UserError(f"model._target_: it makes a {type(network).__name__}; must make a network (nn.Module)")
        return network

    def trained_networks(self) -> list[nn.Module]:
        """Return the networks that are trained, the policy or reward model first."""
        return [self.model] if self.model is not None else []

    @property
    def precision(self) -> str:
        """The trainer's precision; without a trainer, Lightning's default."""
        try:
            return str(self.trainer.precision)
        except RuntimeError:
            return "32-true"

    @property
    def strategy(self) -> Any:
        """The trainer's strategy; None without a trainer."""
        try:
            return self.trainer.strategy
        except RuntimeError:
            return None

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Keep heads and adapters in float32, except under DeepSpeed, which has one type and float32 masters."""
        if isinstance(self.strategy, DeepSpeedStrategy):
            follow_casts(self)
        return super().guard_casts()

    def shard(self, network: Any) -> None:
        """Spread a network over the processes, if the strategy is FSDP2; call it once all of it is there."""
        if self.device_mesh is not None:
            gathered = torch.bfloat16 if self.precision == "bf16-mixed" else None
            shard(network, self.device_mesh["data_parallel"], gathered)

    def on_fit_start(self) -> None:
        """Refuse rows that the model cannot read, now that both are there."""
        check_rows(self, self.model, "data.max_length")

    def configure_optimizers(self) -> Any:
        """The optimiser over everything trainable, and the scheduler over its steps."""
        with blaming("optimizer: cannot be built with these settings"):
            optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:
            let_lightning_clip(optimizer)
        if self.trainer.is_global_zero:
            warn_of_lost_updates(optimizer)
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._scheduler(self.make_scheduler, optimizer), "interval": "step"},
        }

    def _scheduler(self, make: SchedulerFactory, optimizer: Optimizer) -> LRScheduler:
        """The scheduler, told how many optimiser steps are planned.

        Raises:
            UserError: it asks for the number of steps of a run without an end.
        """
        asks = "num_training_steps" in inspect.signature(make).parameters
        warm_up = getattr(make, "keywords", {}).get("num_warmup_steps") or 0
        if not asks and not warm_up:
            return make(optimizer=optimizer)
        steps = self.trainer.estimated_stepping_batches
        if asks and not math.isfinite(steps):
            raise UserError(ENDLESS_SCHEDULE)
        if 0 < steps <= warm_up:
            log.warning(
                f"scheduler.num_warmup_steps: found {warm_up}, and the run has {int(steps)} optimiser steps: the "
                "learning rate never reaches optimizer.lr"
            )
        return make(optimizer=optimizer, **({"num_training_steps": int(steps)} if asks else {}))

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Free the gradients after the step: Lightning would keep them until the next forward pass is over."""
        self.rate = torch.tensor(float(optimizer.param_groups[0]["lr"]), dtype=torch.float32)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.optimizer_zero_grad(epoch, batch_idx, optimizer)

    def record(self, name: str, value: Tensor | float, weight: Tensor | float = 1.0) -> None:
        """Add to the weighted mean of a metric, over all batches and processes since it was last logged."""
        if not self._records:
            return
        metric = self._metric(name)
        metric.update(value.detach() if isinstance(value, Tensor) else value, weight)

    def _metric(self, name: str) -> WeightedMean:
        key = name.replace(".", "_")
        if key not in self.metrics:
            self.metrics[key] = WeightedMean(self.device)
        metric = self.metrics[key]
        assert isinstance(metric, WeightedMean)
        return metric

    def _recorded(self, prefix: str = "") -> dict[str, WeightedMean]:
        """The means with something recorded since they were last logged."""
        metrics = {name: self._metric(name) for name in self.metrics if name.startswith(prefix)}
        return {name: metric for name, metric in metrics.items() if metric.update_called}

    def _unlogged(self, prefix: str = "") -> list[tuple[str, Metric]]:
        """The means and then the maxima with something recorded since they were last logged."""
        maxima = [(name, metric) for name, metric in self.maxima.items() if name.startswith(prefix)]
        recorded: list[tuple[str, Metric]] = [*self._recorded(prefix).items()]
        return recorded + [(name, m) for name, m in maxima if isinstance(m, Metric) and m.update_called]

    def record_max(self, name: str, value: Tensor) -> None:
        """Add to the maximum of a metric, over all batches and processes since it was last logged."""
        if not self._records:
            return
        if name not in self.maxima:
            self.maxima[name] = Maximum(self.device)
        self.maxima[name].update(value.detach())  # type: ignore[operator]

    @torch.no_grad()
    def loss_again(self, batch: Any) -> Tensor:
        """Return the loss of a batch that was trained on, with the weights as they are now; nothing is recorded."""
        self._records = False
        try:
            loss = self.training_step(batch, 0)
            assert isinstance(loss, Tensor)
            return loss
        finally:
            self._records = True

    def log_recorded(self, prefix: str = "", **kwargs: Any) -> dict[str, Tensor]:
        """Log and reset every recorded metric whose name starts with `prefix`; returns what was logged.

        With them, if they are not those of a validation: the learning rate of the last optimiser step.
        """
        logged: dict[str, Tensor] = {}
        for name, metric in self._unlogged(prefix):
            logged[name] = metric.compute()
            metric.reset()
        logged = on_host(logged)  # loggers, callbacks and the screen read each number on its own
        if self.rate is not None and not prefix:
            logged["lr"] = self.rate
        # Means already; without a batch size Lightning would guess one from the batch, and fail.
        self.log_dict(logged, rank_zero_only=True, batch_size=1, **kwargs)
        return logged

    def gather(self, x: Tensor) -> Tensor:
        """`x` of all processes, stacked in front: [world_size, ...]."""
        if self.trainer.world_size == 1:
            return x.unsqueeze(0)
        gathered = self.all_gather(x)
        assert isinstance(gathered, Tensor)
        return gathered

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means over the optimiser steps since the last time, every `log_every_n_steps`."""
        if self.logs_after(batch_idx):
            self.log_recorded(on_step=True, on_epoch=False, prog_bar=True)

    def logs_after(self, batch_idx: int) -> bool:
        """Whether this batch ends an optimiser step after which the means are logged."""
        stepped = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 or self.trainer.is_last_batch
        return stepped and self._logs_this_step()

    def _logs_this_step(self) -> bool:
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and self.global_step % every == 0

    def pending_metrics(self) -> dict[str, float]:
        """What the loggers get at this step, but only after a checkpoint saved now: a kill between the two loses it."""
        if not self._logs_this_step():
            return {}
        pending = {name: float(x) for name, x in on_host({name: m.compute() for name, m in self._unlogged()}).items()}
        return {**pending, "lr": float(self.rate)} if pending and self.rate is not None else pending

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation set."""
        self.log_recorded("val/", on_step=False, on_epoch=True, prog_bar=True)

    def interrupted(self) -> str | None:
        """What the run is in the middle of, where a checkpoint cannot be resumed from exactly; None elsewhere."""
        return interrupted(self.trainer)

    def _check_trained(self) -> None:
        """Raise BlownUpError for trained weights that no model has, on every process: the checkpoint is not written."""
        try:
            check_size((name, local(p)) for name, p in self.named_parameters() if p.requires_grad)
            found = None
        except BlownUpError as error:
            found = error
        several = self.trainer.world_size > 1
        if several and self.trainer.strategy.reduce_boolean_decision(found is not None, all=False) and found is None:
            found = BlownUpError("the weights of another process have blown up; train again with a lower optimizer.lr")
        if found is not None:
            raise found

    def reference_hash(self) -> str | None:
        """Return the hash of the frozen network that this run compares with; None: there is none to check here."""
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is trained (frozen weights are loaded again from their source) and what is not logged yet."""
        self._check_trained()
        mark(checkpoint, self.interrupted())
        checkpoint["origin"] = origin(self)
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        unlogged = [] if self._logs_this_step() else self._unlogged()
        sums = {name: metric.sums() for name, metric in unlogged if isinstance(metric, WeightedMean)}
        checkpoint["recorded"] = of_every_process(on_host(sums))
        maxima = {name: metric.value for name, metric in unlogged if isinstance(metric, Maximum)}
        checkpoint["recorded_maxima"] = of_every_process(on_host(maxima))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what was recorded since it was last logged.

        Raises:
            UserError: the checkpoint is of another algorithm, network or data, or one from which a run does not resume
                exactly.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            check_origin(self, checkpoint)
        if (reason := checkpoint.get("cannot_resume")) and self.trainer.state.fn == TrainerFn.FITTING:
            raise UserError(f"ckpt: {reason}; resume from another one (ckpt=last finds the newest that is whole)")
        for name, sums in (of_this_process(checkpoint.get("recorded", [])) or {}).items():
            self._metric(name).restore(sums)
        for name, value in (of_this_process(checkpoint.get("recorded_maxima", [])) or {}).items():
            self.record_max(name, value.to(self.device))

    def export(self, folder: str | Path) -> None:
        """Write the trained model, or its adapter alone, and its tokenizer as a Hugging Face folder."""
        export_model(self.model, self.tokenizer, folder)
