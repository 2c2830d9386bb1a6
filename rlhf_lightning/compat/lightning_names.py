"""Private names of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def leave_signals_alone(trainer: Any) -> None:
    """Keep a Trainer from handling signals itself.

    On SIGTERM its handler communicates with the other processes from wherever the program is, which may hang them all.
    Lightning has no public switch for it.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def let_lightning_clip(optimizer: Any) -> None:
    """Let gradients be clipped before a fused optimiser's step, where there is no loss scale.

    Such an optimiser says that it can divide gradients by a scale itself; torch sets this mark, Lightning reads it, and
    neither asks whether there is a scale.
    """
    optimizer._step_supports_amp_scaling = False


def saves_within_epochs(callback: Any) -> bool:
    """Return whether a checkpoint callback saves by steps or by time. ModelCheckpoint keeps its settings private."""
    return bool(getattr(callback, "_every_n_train_steps", 0) or getattr(callback, "_train_time_interval", None))


class OpenCheckpoint(ModelCheckpoint):
    """ModelCheckpoint, with a say in when it saves and what happens then.

    Its public hooks decide when to save and save at once, so that what is due cannot wait.
    """

    @property
    def every_steps(self) -> int:
        """So many optimiser steps lie between two checkpoints; 0: it saves by epochs or by time."""
        return self._every_n_train_steps

    @property
    def last_saved_step(self) -> int:
        """The step of the last checkpoint."""
        return self._last_global_step_saved

    def skips(self, trainer: Trainer) -> bool:
        """Return whether nothing is saved now: in a sanity check, twice at a step, or in a fast run."""
        return bool(self._should_skip_saving_checkpoint(trainer))

    def saves_at_epoch_end(self, trainer: Trainer) -> bool:
        """Return whether an epoch's checkpoint is saved at its end, and not after its validation."""
        return bool(self._should_save_on_train_epoch_end(trainer))

    def save_now(self, trainer: Trainer) -> None:
        """Save the best checkpoints and the last one."""
        metrics = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, metrics)
        self._save_last_checkpoint(trainer, metrics)

    def chooses(self, trainer: Trainer) -> bool:
        """Return whether the best checkpoints are chosen anew now; the last one is saved in any case."""
        return True

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.chooses(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def before_writing(self, trainer: Trainer, filepath: str) -> None:
        """Called before a checkpoint is written."""

    def after_writing(self, trainer: Trainer, filepath: str) -> None:
        """Called after a checkpoint is written."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.before_writing(trainer, filepath)
        super()._save_checkpoint(trainer, filepath)
        self.after_writing(trainer, filepath)


def validate_if_due(trainer: Any) -> None:
    """Validate now, if this epoch is one after which a Trainer validates.

    Lightning does so after an epoch's last batch, and leaves it out of an epoch that a module has cut short with -1
    from `on_train_batch_start`. These are the lines with which it does.
    """
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    if not loop._should_check_val_epoch():
        return
    trainer.validating = True
    first_batch = connector._first_loop_iter
    loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first_batch
