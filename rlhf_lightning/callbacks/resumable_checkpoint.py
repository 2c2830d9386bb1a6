"""When to save a checkpoint: only where a run can resume from it exactly."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlhf_lightning.callbacks.checkpoint_io import DurableCheckpointIO
from rlhf_lightning.compat.lightning_names import OpenCheckpoint
from rlhf_lightning.durable import forget_files
from rlhf_lightning.errors import UserError
from rlhf_lightning.run_identity import identity_of


class ResumableCheckpoint(OpenCheckpoint):
    """Lightning's ModelCheckpoint, saving only where a resumed run is bitwise identical to the uninterrupted one.

    - `last.ckpt` is saved at the end of every `every_n_epochs`-th epoch, also with `save_top_k=0`, where Lightning 2.6
      saves it only when training ends.
    - A save that is due within an epoch waits until `can_resume_from`, at most for a validation or until the epoch's
      end.
    - Where `max_steps`, `max_time` or `should_stop` cuts an epoch short, it is saved after the last step and not at the
      epoch's end, from which Lightning would resume as if the epoch were complete; a stop waits for the end of the
      optimiser step. A module that cannot resume within an epoch (PPO) keeps the previous epoch's checkpoint.
    - For a module that cannot resume within an epoch, the best checkpoint by a validation metric is chosen among the
      validated epochs: after the others, the metric belongs to earlier weights.
    - A run folder that was moved or copied keeps its best checkpoints: they are looked up next to the resumed one.
    """

    _due = False
    _stop = False
    _cut = False
    _validated: int | None = None
    _run_id: str | None = None

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._run_id = checkpoint.get("run_id")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        former, here = state_dict.get("dirpath"), self.dirpath
        if former and here and str(former) != str(here) and self._run_id:
            state_dict = self._found_here(state_dict, Path(here)) or state_dict
        super().load_state_dict(state_dict)

    def _found_here(self, state: dict[str, Any], here: Path) -> dict[str, Any] | None:
        """Return the state with the paths of this run's checkpoints in a folder, without missing ones."""

        def found(path: str) -> str:
            place = here / os.path.relpath(path, state["dirpath"]) if path else None
            is_own = place is not None and place.exists() and identity_of(place).get("run_id") == self._run_id
            return str(place) if is_own else ""

        paths = {key: found(state[key]) for key in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {found(path): value for path, value in state["best_k_models"].items() if found(path)}
        return {**state, **paths, "best_k_models": best, "dirpath": str(here)} if best or any(paths.values()) else None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_logged(trainer, pl_module, self.monitor)
        super().on_train_start(trainer, pl_module)
        self._due = self._stop = self._cut = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        n = self.every_steps
        step = trainer.global_step
        self._due = self._due or (n > 0 and step % n == 0 and step != self.last_saved_step)
        self._stop_after_the_step(trainer, batch_idx)
        if self._ends_here(trainer) and getattr(pl_module, "saves_mid_epoch", True):
            due = self._due or self._epoch_due(trainer)
            if due and within_epoch(trainer, batch_idx) and not self.skips(trainer):
                self._save(trainer)
            return
        if not can_resume_from(trainer, batch_idx):
            return
        if self._due:
            self._save(trainer)
        elif n == 0:  # by time, which Lightning decides
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        ended = trainer.is_last_batch or getattr(pl_module, "iteration_ended", False)
        self._cut = not ended and not getattr(pl_module, "saves_mid_epoch", True)
        if self._cut:
            return
        self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)
        if (self._epoch_due(trainer) or self._due) and not self.skips(trainer):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = trainer.current_epoch
        super().on_validation_end(trainer, pl_module)

    def chooses(self, trainer: Trainer) -> bool:
        if not str(self.monitor).startswith("val/") or getattr(trainer.lightning_module, "saves_mid_epoch", True):
            return True
        return self._validated == trainer.current_epoch

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._cut:
            super().on_train_end(trainer, pl_module)

    def before_writing(self, trainer: Trainer, filepath: str) -> None:
        if trainer.is_global_zero:
            forget_files(Path(filepath))  # for a folder overwritten in place

    def after_writing(self, trainer: Trainer, filepath: str) -> None:
        checkpoint_io = trainer.strategy.checkpoint_io
        # A folder is written by its strategy (DeepSpeed, FSDP), which does not write manifests.
        if trainer.is_global_zero and isinstance(checkpoint_io, DurableCheckpointIO) and Path(filepath).is_dir():
            checkpoint_io.describe_folder(Path(filepath))

    def _stop_after_the_step(self, trainer: Trainer, batch_idx: int) -> None:
        """Delay a stop while gradients accumulate: they are not in a checkpoint."""
        self._stop = self._stop or trainer.should_stop
        trainer.should_stop = self._stop and ends_step(trainer, batch_idx)

    def _ends_here(self, trainer: Trainer) -> bool:
        """Return whether training ends after this batch."""
        step, epoch = trainer.global_step, trainer.current_epoch
        may_stop = step >= (trainer.min_steps or 0) and epoch >= (trainer.min_epochs or 0)
        return (trainer.should_stop and may_stop) or 0 <= trainer.max_steps <= step

    def _epoch_due(self, trainer: Trainer) -> bool:
        n = self.every_n_epochs or 0
        return n > 0 and (trainer.current_epoch + 1) % n == 0 and self.saves_at_epoch_end(trainer)

    def _check_monitor(self, trainer: Trainer) -> None:
        """Raise UserError if the metric that selects the best checkpoints is not among those of an epoch."""
        names = sorted(trainer.callback_metrics)
        validated = any(name.startswith("val/") for name in names)
        if self.monitor in (None, *names) or (str(self.monitor).startswith("val/") and not validated):
            return
        near = difflib.get_close_matches(str(self.monitor), names, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names) or 'none'}"
        raise UserError(f"callbacks: the monitor {self.monitor!r} of a checkpoint was not logged in this epoch{hint}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        ask: Any = getattr(pl_module, "interrupted", lambda: None)
        if ask() is None:  # else Lightning would replace the last good checkpoint with one that no run can resume from
            super().on_exception(trainer, pl_module, exception)

    def _save(self, trainer: Trainer) -> None:
        self._due = False
        self.save_now(trainer)


def check_logged(trainer: Trainer, module: LightningModule, monitor: str | None) -> None:
    """Raise UserError if a metric of training steps that a callback reads at an epoch's end is not logged until then.

    Only for modules that log the means over several steps, and no metrics of a validation or of a callback.
    """
    every, batches = trainer.log_every_n_steps, trainer.num_training_batches  # type: ignore[attr-defined]
    by_step = hasattr(module, "logs_after") and getattr(module, "saves_mid_epoch", True)
    if not by_step or monitor is None or monitor.startswith(("val/", "perf/", "average/")) or batches == float("inf"):
        return
    steps, done = -(-int(batches) // trainer.accumulate_grad_batches), trainer.global_step
    if every < 1 or (done + steps) // every == done // every:
        raise UserError(
            f"callbacks: the monitor {monitor!r} would not be logged in the first epoch, of {steps} "
            f"step{'s' * (steps != 1)}; set "
            f"trainer.log_every_n_steps={steps} or less (found {every})"
        )


def can_resume_from(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether a checkpoint saved at the end of this batch holds the complete state of the run.

    It does not while gradients accumulate (they are not in a checkpoint), before a validation (a resumed run would skip
    it), and at the last batch (the epoch's end, a moment later, is the better point).
    """
    if not within_epoch(trainer, batch_idx):
        return False
    every = trainer.val_check_batch
    counted = batch_idx if trainer.check_val_every_n_epoch is not None else trainer.fit_loop.total_batch_idx
    validates = trainer.enable_validation and every not in (None, float("inf")) and (counted + 1) % int(every) == 0
    return not validates


def within_epoch(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether this batch ends an optimiser step, but not the epoch."""
    return not trainer.is_last_batch and ends_step(trainer, batch_idx)


def ends_step(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether the optimiser steps after this batch."""
    return trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0
