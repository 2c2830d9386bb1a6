"""Exact resuming: the random states that a Lightning checkpoint leaves out."""

from __future__ import annotations

import logging
import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from rlhf_lightning.data import BatchLoader
from rlhf_lightning.training.processes import of_every_process, of_this_process

log = logging.getLogger(__name__)


class ReproducibleResume(L.Callback):
    """Keeps the random states of every process in every checkpoint and restores them before the first resumed step.

    Data order, prompts and responses are functions of (seed, epoch, rank) and need no state; what remains is what draws
    from the global generators: dropout, and user code. The last metrics are kept too, so that a run resumed at its very
    end has a summary. A resumed optimiser restores its previous learning rate: if the config now sets another one, that
    one applies, and a scheduler continues from its position on the curve.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] | None = None
        self._metrics: dict[str, Tensor] = {}
        self._position: list[dict[str, Any]] = []
        self._rates: list[tuple[Optimizer, list[float]]] = []
        self._max_steps: int | None = None  # while the loops are restored

    def state_dict(self) -> dict[str, Any]:
        """Return the current states of Python, NumPy, torch and every CUDA device, of every process."""
        name, keys, position, has_gauss, cached = np.random.get_state()
        version, internal, gauss = random.getstate()
        state = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "cuda_device": torch.cuda.current_device() if torch.cuda.is_available() else 0,
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
            "python": (version, list(internal), gauss),
        }
        return {"processes": of_every_process(state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: loading and set-up may draw random numbers themselves."""
        self._restored = state_dict["processes"]

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the last metrics."""
        ask: Any = getattr(pl_module, "pending_metrics", dict)
        pending = {name: torch.tensor(value) for name, value in ask().items()}
        checkpoint["metrics"] = {name: x.detach().cpu() for name, x in {**trainer.callback_metrics, **pending}.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read the last metrics and the position in the data.

        Lightning clears its metrics before the fit starts; FSDP2's checkpoints are read after that.
        """
        self._metrics = checkpoint.get("metrics", {})
        trainer.callback_metrics.update(self._metrics)
        self._position = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the metrics, and note the learning rates before the checkpoint's replace them."""
        trainer.callback_metrics.update(self._metrics)
        self._rates = [(optimizer, base_rates(optimizer)) for optimizer in trainer.optimizers]
        if trainer.ckpt_path is not None:
            # With a step limit, Lightning resumes the end of an epoch as its middle, and skips the next one.
            self._max_steps, trainer.fit_loop.epoch_loop.max_steps = trainer.max_steps, -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the random states, and apply a changed learning rate."""
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps, self._max_steps = self._max_steps, None
        if self._restored is None:
            return
        # Lightning skips this if the loader was created before the checkpoint was read, as happens with a scheduler
        # that asks for `num_training_steps`. A plain DataLoader has no position.
        if self._position and isinstance(trainer.train_dataloader, BatchLoader):
            trainer.train_dataloader.load_state_dict(self._position[0])
        state, self._restored = of_this_process(self._restored), None
        for optimizer, rates in self._rates:
            if rates != base_rates(optimizer):
                change_rates(optimizer, rates, [config.scheduler for config in trainer.lr_scheduler_configs])
        if state is None:
            return  # saved with another number of processes
        torch.set_rng_state(state["torch"])
        restore_cuda(state["cuda"], state.get("cuda_device", 0))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))


def restore_cuda(states: list[Tensor], own: int) -> None:
    """Restore the states of the CUDA devices, as far as they are visible now.

    Args:
        states: one per device that was visible when they were saved.
        own: index of the device that this process used; its state goes to the device that the process uses now.
    """
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible == 0 or not states:
        if bool(visible) != bool(states):
            was, now = ("a GPU", "a CPU") if states else ("a CPU", "a GPU")
            log.warning(f"ckpt: saved on {was}, resumed on {now}: dropout draws other numbers than without the resume")
        return
    for device, state in enumerate(states[:visible]):
        torch.cuda.set_rng_state(state, device)
    if own < len(states):
        torch.cuda.set_rng_state(states[own], torch.cuda.current_device())


def base_rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of every parameter group, before a scheduler's factor."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def change_rates(optimizer: Optimizer, rates: list[float], schedulers: list[Any]) -> None:
    """Give every group another base rate, and scale what a scheduler has derived from the old one."""
    for group, rate, former in zip(optimizer.param_groups, rates, base_rates(optimizer), strict=True):
        group["lr"] = group["lr"] * rate / former if former else rate
        if "initial_lr" in group:
            group["initial_lr"] = rate
    for scheduler in schedulers:
        if getattr(scheduler, "optimizer", None) is optimizer and hasattr(scheduler, "base_lrs"):
            scheduler.base_lrs = list(rates)
