"""An exponential moving average of the trainable parameters only."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Between


class TrainableAverage(Callback):
    """Averages the trainable parameters after each optimiser step, to validate with the average and to export it.

    average <- d average + (1 - d) parameter,  d = min(decay, (1 + n) / (10 + n)) at the n-th step

    so that a short run is not dominated by its start. Frozen weights, including 4-bit ones, are neither copied nor
    read. The average is kept in float32, whatever the type of the parameters. Checkpoints store the live weights
    (training resumes as if there were no average) and the average. Logs `average/decay` (d) and `average/distance`
    (||average - parameters|| / ||parameters||) once per epoch.

    Args:
        decay: d's upper bound, in (0, 1).
        validate: validate with the average in place of the live weights.
        export: the average remains in the module when the fit ends, and is what the run exports.

    Raises:
        UserError: a decay out of range, an average that nothing uses, or parameters sharded over processes.

    Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the first steps' d is
    that of TensorFlow's ExponentialMovingAverage.
    """

    @checked("callbacks.average")
    def __init__(self, decay: Between = 0.999, validate: bool = False, export: bool = True) -> None:
        if not (validate or export):
            raise UserError("callbacks.average.export: found false beside validate=false; nothing uses the average")
        self.decay, self.validate, self.export = decay, validate, export
        self._steps = 0
        self._average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] | None = None  # while the average is in their place

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Come before the other callbacks: one that saves after a step must save the average of that step too."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        callbacks.remove(self)
        callbacks.insert(0, self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaded, self._average = self._average, {}
        for name, parameter in _trainable(pl_module):
            if isinstance(parameter, DTensor) or hasattr(parameter, "ds_shape"):
                raise UserError("callbacks.average: sharded parameters cannot be averaged; use trainer.strategy=ddp")
            source = loaded.get(name, parameter.detach())
            self._average[name] = source.to(device=parameter.device, dtype=torch.float32, copy=True)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._steps:
            return  # accumulating gradients: nothing was updated
        self._steps = trainer.global_step
        for name, parameter in _trainable(pl_module):
            self._average[name].lerp_(parameter.detach().float(), 1 - self._current_decay())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pairs = [(self._average[name], parameter.detach().float()) for name, parameter in _trainable(pl_module)]
        apart = torch.stack([(average - live).square().sum() for average, live in pairs]).sum()
        size = torch.stack([live.square().sum() for _, live in pairs]).sum()
        decay, distance = self._current_decay(), float((apart / size).sqrt())
        pl_module.log_dict({"average/decay": decay, "average/distance": distance}, batch_size=1, rank_zero_only=True)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.validate and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._live is not None and trainer.state.fn == TrainerFn.FITTING:
            self.swap(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Put the live weights back: another callback may save them now."""
        if self._live is not None:
            self.swap(pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.export:
            self.swap(pl_module)

    @torch.inference_mode(False)  # a validation runs in it, and its tensors could not be trained on
    @torch.no_grad()
    def swap(self, pl_module: LightningModule) -> None:
        """Put the average in place of the live parameters, or, called again, the live parameters back."""
        back, self._live = self._live, None if self._live is not None else {}
        for name, parameter in _trainable(pl_module):
            if self._live is not None:
                self._live[name] = parameter.detach().clone()
            source = self._average if back is None else back
            if name in source:
                parameter.copy_(source[name])

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]
        self._average = dict(state_dict["average"])

    def _current_decay(self) -> float:
        return min(self.decay, (1 + self._steps) / (10 + self._steps))


def _trainable(pl_module: LightningModule) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
