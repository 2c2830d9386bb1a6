"""Which checkpoints a run can resume from exactly, however they were made."""

from __future__ import annotations

from typing import Any

import lightning as L

from rlhf_lightning.compat.lightning_names import saves_within_epochs
from rlhf_lightning.errors import UserError

WEIGHTS_ONLY = "it holds the weights alone, without the optimiser and the place in the run"


def interrupted(trainer: L.Trainer) -> str | None:
    """Return what a run is in the middle of, such as `a step`, and so cannot resume exactly; None between steps.

    Anything can save a checkpoint then: `trainer.save_checkpoint()` in a hook, an exception, a signal, a callback of
    another project.
    """
    batch: Any = trainer.fit_loop.epoch_loop.batch_progress.current
    if not batch.ready == batch.started == batch.processed:
        return "a step"
    if batch.ready % trainer.accumulate_grad_batches and not trainer.is_last_batch:
        return "the accumulation of gradients"
    return at_epoch_start(trainer)


def at_epoch_start(trainer: L.Trainer) -> str | None:
    """Return a reason at the start of any epoch but the first: Lightning would skip the epoch."""
    epoch: Any = trainer.fit_loop.epoch_progress.current
    return "the start of an epoch" if epoch.ready != epoch.started and trainer.global_step > 0 else None


def refuse_within_iterations(trainer: L.Trainer) -> None:
    """Raise UserError for a callback that saves within an iteration of an on-policy algorithm."""
    for callback in trainer.checkpoint_callbacks:
        if saves_within_epochs(callback):
            raise UserError(
                "callbacks: an on-policy run is checkpointed at the end of an iteration; use every_n_epochs instead of "
                "every_n_train_steps or train_time_interval"
            )


def mark(checkpoint: dict[str, Any], within: str | None) -> None:
    """Note in a checkpoint why no run can resume from it."""
    if within is not None:
        checkpoint["cannot_resume"] = f"it was saved within {within}"
    elif "optimizer_states" not in checkpoint:
        checkpoint["cannot_resume"] = WEIGHTS_ONLY
