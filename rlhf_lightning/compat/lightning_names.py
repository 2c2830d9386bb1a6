"""Private names of Lightning."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def leave_signals_alone(trainer: Any) -> None:
    """Keep a Trainer from handling signals itself.

    On SIGTERM its handler communicates with the other processes wherever the program is, which may hang them all.
    Lightning has no public switch for it.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None


def let_lightning_clip(optimizer: Any) -> None:
    """Let gradients be clipped before a fused optimiser's step when there is no loss scale.

    Such an optimiser declares that it can unscale gradients itself; torch sets this mark and Lightning reads it, and
    neither checks whether there is a scale.
    """
    optimizer._step_supports_amp_scaling = False


def saves_within_epochs(callback: Any) -> bool:
    """Return whether a checkpoint callback saves by steps or by time. ModelCheckpoint keeps these settings private."""
    return bool(getattr(callback, "_every_n_train_steps", 0) or getattr(callback, "_train_time_interval", None))


class OpenCheckpoint(ModelCheckpoint):
    """ModelCheckpoint with control over when it saves and what happens then.

    Its public hooks decide when to save and save immediately, so a due save could not wait.
    """

    @property
    def every_steps(self) -> int:
        """Return the number of optimiser steps between two checkpoints; 0 if it saves by epochs or by time."""
        return self._every_n_train_steps

    @property
    def last_saved_step(self) -> int:
        """Return the step of the last checkpoint."""
        return self._last_global_step_saved

    def skips(self, trainer: Trainer) -> bool:
        """Return whether nothing is saved now: in a sanity check, twice at the same step, or in a fast dev run."""
        return bool(self._should_skip_saving_checkpoint(trainer))

    def saves_at_epoch_end(self, trainer: Trainer) -> bool:
        """Return whether an epoch's checkpoint is saved at its end rather than after its validation."""
        return bool(self._should_save_on_train_epoch_end(trainer))

    def save_now(self, trainer: Trainer) -> None:
        """Save the best checkpoints and the last one."""
        metrics = self._monitor_candidates(trainer)
        self._save_topk_checkpoint(trainer, metrics)
        self._save_last_checkpoint(trainer, metrics)

    def chooses(self, trainer: Trainer) -> bool:
        """Return whether the best checkpoints are selected again now; the last one is saved in any case."""
        return True

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: dict[str, Any]) -> None:
        if self.chooses(trainer):
            super()._save_topk_checkpoint(trainer, monitor_candidates)

    def before_writing(self, trainer: Trainer, filepath: str) -> None:
        """Do nothing; called before a checkpoint is written."""

    def after_writing(self, trainer: Trainer, filepath: str) -> None:
        """Do nothing; called after a checkpoint is written."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        self.before_writing(trainer, filepath)
        super()._save_checkpoint(trainer, filepath)
        self.after_writing(trainer, filepath)


def validate_if_due(trainer: Any) -> None:
    """Validate now, if a Trainer validates after this epoch.

    Lightning does so after an epoch's last batch, but skips it in an epoch that a module has cut short by returning -1
    from `on_train_batch_start`. These are Lightning's own lines for it.
    """
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    if not loop._should_check_val_epoch():
        return
    trainer.validating = True
    first_batch = connector._first_loop_iter
    loop.val_loop.run()
    trainer.training = True
    connector._first_loop_iter = first_batch
