"""Stopping well when the machine is wanted back."""

from __future__ import annotations

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
from rlhf_lightning.errors import Terminated

log = logging.getLogger(__name__)


class StopOnSigterm(Callback):
    """On SIGTERM: finish the optimiser step, save `last.ckpt`, and leave with `Terminated`, exit code 143.

    Lightning's own handler saves nothing and exits 0, and with several processes it communicates from inside the signal
    handler. Here the handler only notes the signal, and the processes agree on the step they stop at. A module that
    cannot resume within an epoch (`saves_mid_epoch = False`, PPO) has its checkpoint already, of the last epoch's end,
    and stops at once, or, with several processes, at the end of the batch.

    Under srun it does the same on the signal that announces the end of the time limit (`sbatch --signal=USR1@90`), and
    has SLURM queue the job again, as Lightning would, which saves wherever the run is.

    Args:
        dirpath: where `last.ckpt` goes; default: where the run's checkpoint callback saves. Nowhere: nothing is saved.
    """

    def __init__(self, dirpath: str | Path | None = None) -> None:
        self.dirpath = dirpath
        self._received = False
        self._at_once = False
        self._requeue = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signal over from Lightning, which puts the former handler back when the fit ends."""
        self._at_once = trainer.world_size == 1 and not _saves_mid_epoch(pl_module)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._note)
            if SLURMEnvironment.detect():
                signal.signal(signal.SIGUSR1, self._note)

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
        if self._agreed(trainer):
            raise Terminated  # the checkpoint of the end is saved

    def _stop(self, trainer: Trainer) -> NoReturn:
        again = trainer.strategy.reduce_boolean_decision(self._requeue, all=False)
        if again and trainer.is_global_zero:
            queue_again()
        raise Terminated

    def _note(self, signum: int, *_: Any) -> None:
        self._requeue = self._requeue or signum == signal.SIGUSR1
        # A repeated signal must not cut the saving short: `timeout` sends two.
        first, self._received = not self._received, True
        if first and self._at_once:
            if self._requeue:
                queue_again()
            raise Terminated

    def _agreed(self, trainer: Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self._received, all=False)

    def _save(self, trainer: Trainer) -> None:
        folder = self.dirpath or getattr(trainer.checkpoint_callback, "dirpath", None)
        if folder is not None:
            trainer.save_checkpoint(Path(folder) / "last.ckpt", weights_only=False)


def queue_again() -> None:
    """Have SLURM run this job once more: it finds its run folder's checkpoint."""
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
