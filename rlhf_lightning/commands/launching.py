"""Sweeps (`-m`) and what runs their jobs: Hydra in this process, or submitit in separate processes, under SLURM."""

from __future__ import annotations

import atexit
import importlib.util
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.composition import compose_with_launcher, split_sweep
from rlhf_lightning.errors import UserError
from rlhf_lightning.process.collectives import let_collectives_end
from rlhf_lightning.runs.checkpoints import saved_by_this_job
from rlhf_lightning.runs.run_folder import OUTPUTS, chosen_run_dir, run_of_checkpoint

_SUBMITIT = "hydra_plugins.hydra_submitit_launcher."
_SIZES = ("nodes", "tasks_per_node", "gpus_per_node")


def is_submitit(launcher: Mapping[str, Any]) -> bool:
    """Return whether a job runs in processes that submitit starts, rather than in the sweep's own."""
    return str(launcher["_target_"]).startswith(_SUBMITIT)


def _is_slurm(launcher: Mapping[str, Any]) -> bool:
    return is_submitit(launcher) and str(launcher["_target_"]).endswith("SlurmLauncher")


def launcher_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that choose or configure what runs the jobs."""
    return [each for each in overrides if each.lstrip("+~").startswith(("hydra/launcher", "hydra.launcher"))]


def has_several_jobs(config_name: str, overrides: Sequence[str]) -> bool:
    """Return whether a sweep's jobs must be told apart. Any sweeper other than Hydra's may have any number of jobs."""
    return _has_own_sweeper(overrides) or len(split_sweep(config_name, overrides)[1]) > 1


def _has_own_sweeper(overrides: Sequence[str]) -> bool:
    return any(each.lstrip("+~").startswith(("hydra/sweeper", "hydra.sweeper")) for each in overrides)


def check_jobs(
    config_name: str, overrides: Sequence[str], config_dir: str | None, check: Callable[[dict[str, Any]], object]
) -> None:
    """Check every job of a sweep before any of them is queued.

    Raises:
        UserError: one line about the first problem.
    """
    if _has_own_sweeper(overrides):
        return  # only the sweeper knows its jobs
    shared, jobs = split_sweep(config_name, overrides)
    _, launcher = compose_with_launcher(config_name, shared, config_dir)
    if is_submitit(launcher):
        _check_submitit(launcher)
    for job in jobs:
        config, own = compose_with_launcher(config_name, job, config_dir)
        for key in _SIZES:
            if own.get(key) != launcher.get(key):
                raise UserError(
                    f"hydra.launcher.{key}: found {launcher[key]} and {own[key]}; must be the same for all jobs of a "
                    "sweep: give trainer.devices and trainer.num_nodes, or start a sweep for each"
                )
        check_processes(config, launcher)
        if is_submitit(launcher) and config.get("ckpt") == "last" and not config["run_dir"]:
            raise UserError("ckpt: last may belong to another job; give the run's run_dir, or the checkpoint file")
        check(config)


def _check_submitit(launcher: Mapping[str, Any]) -> None:
    if any(importlib.util.find_spec(name) is None for name in ("hydra_plugins", "submitit")):
        raise UserError("hydra/launcher: needs the extra slurm: pip install 'rlhf-lightning[slurm]'")
    if _is_slurm(launcher) and not shutil.which("srun"):
        raise UserError("hydra/launcher: there is no srun here; submit from a machine of the cluster (a login node)")


def check_processes(config: Mapping[str, Any], launcher: Mapping[str, Any]) -> None:
    """Raise UserError unless a job's processes are each started once, and there are as many as the Trainer expects.

    Without SLURM, Lightning starts them by running the command again: each would run the whole sweep.
    """
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if not _is_slurm(launcher):
        for key, value in {"devices": devices, "num_nodes": nodes}.items():
            if value != 1:
                raise UserError(
                    f"trainer.{key}: found {value}; a sweep (-m) without SLURM takes trainer.{key}=1: loop over the "
                    "values in your shell, or choose hydra/launcher=slurm"
                )
        return
    tasks = launcher["tasks_per_node"]
    if not isinstance(tasks, int):
        raise UserError(f"trainer.devices: found {tasks}; SLURM needs the number per node: trainer.devices=8")
    for key, asked, expected in (("tasks_per_node", tasks, devices), ("nodes", launcher["nodes"], nodes)):
        if expected not in ("auto", -1, asked):
            own = "devices" if key == "tasks_per_node" else "num_nodes"
            raise UserError(f"hydra.launcher.{key}: found {asked}; must equal trainer.{own}, which is {expected}")


def numbered(config: dict[str, Any], number: int) -> dict[str, Any]:
    """Return the config of one of several jobs, which must not share a run folder."""
    return {**config, "run_dir": f"{config['run_dir']}_{number}"} if config.get("run_dir") else config


@contextmanager
def naming_job(number: int, own: Sequence[str] | None, run_dir: str | None) -> Iterator[None]:
    """Say in the line about wrong input which job of a sweep it is about, and where that job's folder is.

    Args:
        number: the job's.
        own: the overrides that distinguish it from the other jobs; None: there is no other.
        run_dir: its folder, if the user or the launcher has chosen it.
    """
    try:
        yield
    except UserError as error:
        if own is None:
            raise
        folder = run_dir or chosen_run_dir()
        words = [*own, *([f"in {folder}"] if folder else [])]
        raise UserError(f"{error} (job {number} of the sweep: {' '.join(words)})") from error


def in_run_folder(config: dict[str, Any], sweep_dir: str, number: int) -> dict[str, Any]:
    """Return a training config with the run folder that all processes of its job agree on, even after requeueing.

    The folder is `run_dir`, or the one that the checkpoint belongs to, or `outputs/<name>/<time of the
    sweep>_<number>`. If this job saved something there before it was requeued, it continues from that.
    """
    if "ckpt" not in config:
        return config  # not a config of rlhf-train
    checkpoint, folder = config["ckpt"], config["run_dir"]
    if folder is None:
        folder = checkpoint and checkpoint != "last" and run_of_checkpoint(Path(checkpoint))
        folder = folder or OUTPUTS / str(config["name"]) / f"{Path(sweep_dir).name}_{number}"
    if saved_by_this_job(Path(folder)):
        checkpoint = "last"
    return {**config, "run_dir": str(folder), "ckpt": checkpoint}


@contextmanager
def in_submitit() -> Iterator[None]:
    """Run a command inside a submitit job so that it ends as in a terminal, with the same exit code.

    submitit receives a signal (USR2) when the time limit is near, and would requeue the job immediately. Here the run
    is first told to stop, as by SIGTERM, so that it saves, and submitit's own handling comes afterwards.
    """
    import submitit

    atexit.register(let_collectives_end)
    warning = signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]
    requeue: Any = signal.getsignal(warning)
    warned = False

    def stop(*_: Any) -> None:
        nonlocal warned
        warned = True
        signal.raise_signal(signal.SIGTERM)

    signal.signal(warning, stop)
    try:
        yield
    except SystemExit as end:
        if warned and end.code == 143:
            _requeue(requeue, warning)
        raise
    except Exception:
        # Hydra would store it for the sweep and end this process with 0, and SLURM would let the others wait for it.
        traceback.print_exc()
        sys.exit(1)


def _requeue(handler: Any, warning: signal.Signals) -> None:
    """Do what submitit does on its signal: requeue the job and exit, unless it has hit its limit too often."""
    from submitit.core.utils import UncompletedJobError

    try:
        handler(warning, None)
    except UncompletedJobError as error:
        sys.stderr.write(f"{error}\n")


@contextmanager
def waiting_for_jobs() -> Iterator[None]:
    """Wrap a sweep: report a failed job as submitit describes it, without its traceback, and exit with 1."""
    try:
        yield
    except RuntimeError as error:
        kind = type(error)
        if not kind.__module__.startswith("submitit."):
            raise
        more = "The other processes' output lies in the same folder." if kind.__name__ == "UncompletedJobError" else ""
        sys.stderr.write(f"{error}\n{more}\n")
        sys.exit(1)
