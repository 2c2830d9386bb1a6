"""rlhf-train: one training run from a composed config."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.own_code import blaming_own_code
from rlhf_lightning.config.arithmetic import explain
from rlhf_lightning.config.checks import check_data_kind, check_sections
from rlhf_lightning.config.devices import check_devices
from rlhf_lightning.config.effects import check_effects
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.config.schema import Train
from rlhf_lightning.config.spelling import keys_under
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import AfterTrainingError, DiskError, UserError, blaming
from rlhf_lightning.runs.after_training import Aftermath, export_model, fit
from rlhf_lightning.runs.model_card import write_model_card
from rlhf_lightning.runs.next_steps import curves, next_steps
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.run import Run, read_run
from rlhf_lightning.stopping import advising, signal_of
from rlhf_lightning.tracking.store import ui_command, uses_mlflow
from rlhf_lightning.tracking.store_check import check_tracking

HIGHEST = "highest"  # torch's default of `matmul_precision`


def main() -> None:
    """Run rlhf-train."""
    run_hydra_command("rlhf-train", "train", train, check_all)


def train(config: dict[str, Any]) -> None:
    """Check the config, then explain it or run it."""
    check_all(config)
    if config.get("explain"):
        print(explain(config))
        return
    run = Run(config)
    with advising(run.advice), saying_how_to_go_on(run.advice):
        carry_out(run)
        print_end(run, next_steps(run, sys.argv[1:]) if first_process() else ())
        report_problems([run])


def check_all(config: Mapping[str, Any]) -> None:
    """Do the same as `check`, and check that what the run reads exists. Raises UserError."""
    check(config)
    if not config.get("explain"):
        check_inputs(config)


def check(config: Mapping[str, Any], prefix: str = "") -> None:
    """Check everything that can be checked without importing torch.

    Args:
        config: a training config.
        prefix: what the user writes before its keys, for example `stages.ppo.`.

    Raises:
        UserError: one line about the first problem.
    """
    with keys_under(prefix):
        check_data_kind(config)
    validate(config, Train, prefix)
    with keys_under(prefix):
        check_sections(config)
        check_effects(config)


def run(config: Mapping[str, Any]) -> Run:
    """Train with a checked config in this process; return the run, with its summary and its problems."""
    made = Run(config)
    carry_out(made)
    return made


def carry_out(run: Run) -> None:
    """Train, export and summarise; both rlhf-train and every stage of rlhf-pipeline end up here.

    The run leaves nothing in memory: the next stage, or the evaluation, loads its own networks.

    Args:
        run: of a checked training config; afterwards it has its summary and its problems.
    """
    with run.in_place():
        check_devices(run.config["trainer"])
        if uses_mlflow(run.config):
            check_tracking(run.config["logger"]["tracking_uri"])
        _train(run)
    run.tracking = None  # breaks the chain from the run via the logger to the Trainer

    import torch

    from rlhf_lightning.models.release import release_memory

    torch.set_float32_matmul_precision(HIGHEST)
    release_memory()


def _train(run: Run) -> None:
    """Build the run's objects, train, and write its model and files."""
    from rlhf_lightning.callbacks.run_start import StartRun
    from rlhf_lightning.commands.build import build_parts, prepare
    from rlhf_lightning.commands.rehearsal import rehearse_objects
    from rlhf_lightning.tracking.run_tracking import RunTracking

    rehearse_objects(run.config)
    prepare(run.config)
    tokenizer, module, datamodule, trainer = build_parts(run)
    run.tracking = tracking = RunTracking(run, trainer.loggers)
    with tracking.to_the_end(), _its_processes_end(trainer):
        start, aftermath = StartRun(run), Aftermath()
        trainer.callbacks.insert(0, start)
        fit(trainer, lambda: _start_or_resume(run, trainer, module, datamodule, start), aftermath)
        run.begin()  # if nothing was left to train
        with blaming_own_code(run.config):
            export_model(module.export, run.folder)
        with aftermath.step("the metrics of summary.json"):
            run.summary |= summarise(run.config, trainer)
        run.summary |= {"wall_seconds": run.seconds(), "cpu_seconds": run.cpu_seconds()}
        if first_process():
            _leave_behind(run, tracking, bool(tokenizer.chat_template), aftermath)
        run.problems = aftermath.problems
        trainer.strategy.barrier("export")  # the next stage reads the folder in every process


def _start_or_resume(run: Run, trainer: Any, module: Any, datamodule: Any, start: Any) -> None:
    """Train. Errors while a checkpoint is restored, before the first step, are blamed on the checkpoint."""
    if run.checkpoint is not None and run.checkpoint.is_dir():
        from rlhf_lightning.compat.torch_names import read_sharded_checkpoints_without_pickles

        read_sharded_checkpoints_without_pickles()
    try:
        with blaming_own_code(run.config):
            trainer.fit(module, datamodule, ckpt_path=run.checkpoint)
    except Exception as error:
        if not run.resumes or start.resumed or _of_another_file(error, run.checkpoint):
            raise
        with blaming(f"ckpt: {run.checkpoint} does not fit this run", "take another one, or start without ckpt"):
            raise


def _of_another_file(error: Exception, checkpoint: Path | None) -> bool:
    """Return whether the system refused a file other than the checkpoint, and says which."""
    file = getattr(error, "filename", None) if isinstance(error, OSError) else None
    return isinstance(file, str | Path) and checkpoint not in (Path(file), *Path(file).parents)


@contextlib.contextmanager
def _its_processes_end(trainer: Any) -> Iterator[None]:
    """End the processes that Lightning started if the run is stopped: they may be waiting for this one in a library."""
    try:
        yield
    except BaseException as error:
        processes = getattr(trainer.strategy.launcher, "procs", None)
        if processes and signal_of(error) is not None:
            started = list(processes)
            processes.clear()  # else Lightning's observer would kill this process because the others have failed
            for process in started:
                process.kill()
        raise


def _leave_behind(run: Run, tracking: Any, chat: bool, aftermath: Aftermath) -> None:
    """Write the summary and the model card, log the artifacts and register the model, each even if another fails."""
    name = run.config.get("register")
    with aftermath.step("summary.json"):
        run.end()
    with aftermath.step("the model card"):
        _write_card(run, chat)
    with aftermath.step("the files in MLflow"):
        tracking.send_files()
    registering: list[Future[str]] = []
    if name:
        with aftermath.step(f"registering {name}"):
            registering.append(tracking.register(name))
    with aftermath.step("the end of the run in MLflow"):
        tracking.finish()
    for version in registering:
        with aftermath.step(f"registering {name}"):
            print(f"registered: {name}, version {_version(version)}")


def _version(made: Future[str]) -> str:
    return "none yet, for the store does not answer" if made.cancelled() or not made.done() else made.result()


def _write_card(run: Run, chat: bool) -> None:
    written = read_run(run.folder)  # its config contains no secrets
    assert written is not None
    write_model_card(written, run.model_folder, name=run.name, load_from=str(run.model_folder), chat=chat)


def summarise(config: Mapping[str, Any], trainer: Any) -> dict[str, Any]:
    """Return the final metrics of a run as one flat object; values that are not finite become null."""
    metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
    summary: dict[str, Any] = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    reports = getattr(trainer.datamodule, "report", {})
    return {
        "experiment": config["name"],
        "seed": config["seed"],
        **{f"{split}_rows": report.kept for split, report in reports.items()},
        "epochs": trainer.current_epoch,
        "optimiser_steps": trainer.global_step,
        **summary,
    }


def report_problems(runs: Sequence[Run]) -> None:
    """Report what failed after the training of some runs, or at the end of a pipeline.

    Raises:
        AfterTrainingError: something failed.
    """
    failed = [f"{', '.join(run.problems)} of {run.folder}" for run in runs if run.problems]
    if failed and first_process():
        raise AfterTrainingError(
            f"the model is trained and exported, but this failed: {'; '.join(failed)}; see there, and log or write "
            "it again with the same command and ckpt=last, which trains nothing again"
        )


@contextlib.contextmanager
def saying_how_to_go_on(how: Callable[[], str]) -> Iterator[None]:
    """If the disk is full, say with `how` what to do once there is room."""
    try:
        yield
    except DiskError as error:
        then = how()
        joined = "; " if then.startswith("there is no") else ", and "
        raise UserError(f"{error.finding}; {error.remedy}{joined}{then}") from error


def print_end(run: Run, steps: Collection[str], made: Collection[Path] = ()) -> None:
    """Print the last lines of a run: its folder, and what to do next."""
    if not first_process():
        return
    print(f"run folder: {run.folder}")
    for path in made:
        print(f"report: {path}")
    if uses_mlflow(run.config):
        steps = [*steps, curves(ui_command(run.config["logger"]["tracking_uri"]))]
    if steps:
        print("\n".join(["next:", *steps]))
