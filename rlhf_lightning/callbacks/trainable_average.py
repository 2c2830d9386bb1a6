"""An exponential moving average of the trainable parameters only."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import BelowOne


class TrainableAverage(Callback):
    """Averages the trainable parameters after each optimiser step and swaps the average in when the fit ends.

    average <- d average + (1 - d) parameter,  d = min(decay, (1 + n) / (10 + n)) at the n-th step

    so that a short run is not dominated by its start. Frozen weights, including 4-bit ones, are neither copied nor
    read. Checkpoints store the live weights (training resumes as if there were no average) and the average; the
    exported model is the average.

    Args:
        decay: d's upper bound, in [0, 1).

    Raises:
        UserError: a decay out of range, or parameters sharded over processes.
    """

    @checked("callbacks.average")
    def __init__(self, decay: BelowOne = 0.999) -> None:
        self.decay = decay
        self._steps = 0
        self._average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaded, self._average = self._average, {}
        for name, parameter in _trainable(pl_module):
            if isinstance(parameter, DTensor):
                raise UserError(
                    "callbacks: TrainableAverage cannot average sharded parameters; use trainer.strategy=ddp"
                )
            source = loaded.get(name, parameter.detach())
            self._average[name] = source.to(device=parameter.device, dtype=torch.float32, copy=True)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._steps:
            return  # accumulating gradients: nothing was updated
        self._steps = trainer.global_step
        decay = min(self.decay, (1 + self._steps) / (10 + self._steps))
        for name, parameter in _trainable(pl_module):
            self._average[name].lerp_(parameter.detach().float(), 1 - decay)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.swap(pl_module)

    @torch.no_grad()
    def swap(self, pl_module: LightningModule) -> None:
        """Exchange the live parameters and the average; a second call swaps them back."""
        for name, parameter in _trainable(pl_module):
            if name in self._average:
                live = parameter.detach().float().clone()
                parameter.copy_(self._average[name])
                self._average[name] = live

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self._steps, "average": self._average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps = state_dict["steps"]
        self._average = dict(state_dict["average"])


def _trainable(pl_module: LightningModule) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in pl_module.named_parameters() if parameter.requires_grad]
