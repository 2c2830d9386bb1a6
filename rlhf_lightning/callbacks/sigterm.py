"""Stopping cleanly when the machine is needed for something else."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer

from rlhf_lightning.callbacks.resumable_checkpoint import can_resume_from
from rlhf_lightning.compat.lightning_names import leave_signals_alone
from rlhf_lightning.errors import Terminated
from rlhf_lightning.stopping import hold, let_go, listening, raise_what_waited, tell, told
from rlhf_lightning.value_types import Text

log = logging.getLogger(__name__)


class StopOnSigterm(Callback):
    """On SIGTERM, Ctrl-C or SIGHUP: finish the optimiser step, save `last.ckpt`, and exit with `Terminated`.

    The exit code is 128 + the signal's number. Lightning's own handler saves nothing and exits with 0, and with several
    processes it communicates inside the signal handler. Here signals are only noted during steps (`stopping.hold`), and
    the processes agree on the step to stop at. A module that cannot resume within an epoch (`saves_mid_epoch = False`,
    PPO) already has its checkpoint, from the end of the last epoch, and stops immediately, or, with several processes,
    at the end of the batch.

    Under srun it does the same on the signal that announces the end of the time limit (`sbatch --signal=USR1@90`), and
    has SLURM requeue the job. Lightning does that too, but saves wherever the run is.

    Args:
        dirpath: where `last.ckpt` goes; default: where the run's checkpoint callback saves; without one, nothing is
            saved.
    """

    def __init__(self, dirpath: Text | Path | None = None) -> None:
        self.dirpath = dirpath
        self._requeue = False
        self._undo = contextlib.ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            leave_signals_alone(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hold signals from here to the end of the fit, except where the run may stop immediately."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._requeue = False
        self._undo.enter_context(listening())
        if SLURMEnvironment.detect():
            former = signal.signal(signal.SIGUSR1, self._note_limit)
            self._undo.callback(signal.signal, signal.SIGUSR1, former)
        if trainer.world_size > 1 or _saves_mid_epoch(pl_module):
            hold()
            self._undo.callback(let_go)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        mid_epoch = _saves_mid_epoch(pl_module)
        if (mid_epoch and not can_resume_from(trainer, batch_idx)) or not self._agreed(trainer):
            return
        if mid_epoch:
            self._save(trainer)
        self._stop(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not _saves_mid_epoch(pl_module) and self._agreed(trainer):
            self._stop(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stopped = self._agreed(trainer)
        signum = told()
        self._undo.close()
        raise_what_waited()
        if stopped:
            raise _stop_by(signum)  # the final checkpoint is saved

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._undo.close()

    def _stop(self, trainer: Trainer) -> NoReturn:
        again = trainer.strategy.reduce_boolean_decision(self._requeue, all=False)
        if again and trainer.is_global_zero:
            queue_again()
        raise _stop_by(told())

    def _note_limit(self, *_: Any) -> None:
        """Handle the approaching time limit: stop, and continue in another job."""
        if told() is not None:
            return
        self._requeue = True
        try:
            tell(signal.SIGTERM)
        except Terminated:  # immediately
            queue_again()
            raise

    def _agreed(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(told() is not None, all=False)

    def _save(self, trainer: Trainer) -> None:
        folder = self.dirpath or getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None:
            trainer.save_checkpoint(Path(folder) / "last.ckpt", weights_only=False)


def _stop_by(signum: int | None) -> Terminated:
    """Return the exception that stops a run; another process may have received the signal."""
    return Terminated(signal.SIGTERM if signum is None else signum)


def queue_again() -> None:
    """Have SLURM run this job again; it will find its run folder's checkpoint."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        code = subprocess.run(["scontrol", "requeue", job], check=False).returncode
    except FileNotFoundError:
        code = 127
    if code:
        log.warning(f"scontrol requeue {job} ended with {code}: the job is not queued again; submit it with ckpt=last")


def _saves_mid_epoch(pl_module: LightningModule) -> bool:
    return bool(getattr(pl_module, "saves_mid_epoch", True))
