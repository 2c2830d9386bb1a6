"""Checks of the trainer's batch limits against the actual batches, which Lightning would refuse with a traceback."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.errors import UserError


def training_batches(trainer: Any, whole: int, validates: bool) -> int:
    """Return how many of `whole` batches per epoch the trainer takes.

    Raises:
        UserError: a share of less than one batch, or a validation later than the epoch's end.
    """
    _check_share("trainer.limit_train_batches", trainer.limit_train_batches, whole)
    limit = trainer.limit_train_batches
    batches = limit if isinstance(limit, int) else int(whole * limit)
    every, taken = trainer.val_check_interval, min(batches, whole)
    counted = validates and trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if counted and isinstance(every, int) and every > taken:
        raise UserError(
            f"trainer.val_check_interval: found {every}, but an epoch has {taken} batches; give at most {taken}, or "
            "count over epochs with trainer.check_val_every_n_epoch=null"
        )
    return batches


def check_validation_batches(trainer: Any, whole: int) -> None:
    """Raise UserError for a share of less than one of `whole` batches."""
    _check_share("trainer.limit_val_batches", trainer.limit_val_batches, whole)


def _check_share(key: str, limit: float, batches: int) -> None:
    if isinstance(limit, float) and limit > 0 and int(batches * limit) == 0:
        raise UserError(f"{key}: found {limit}, less than one of {batches} batches; give a larger share, or a number")
