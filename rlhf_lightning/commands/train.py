"""rlhf-train: one training run from a composed config."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.after_training import Aftermath, export_model, fit
from rlhf_lightning.commands.arithmetic import explain
from rlhf_lightning.commands.checks import check_data_kind, check_inputs, check_sections
from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.devices import check_devices
from rlhf_lightning.commands.effects import check_effects
from rlhf_lightning.commands.folder_lock import FolderLock, check_run_dir
from rlhf_lightning.commands.going_on import Place
from rlhf_lightning.commands.help import train_help
from rlhf_lightning.commands.lineage import read_run
from rlhf_lightning.commands.model_card import write_model_card
from rlhf_lightning.commands.own_code import blaming_own_code
from rlhf_lightning.commands.ranks import first_process
from rlhf_lightning.commands.resuming import check_same_run
from rlhf_lightning.commands.run_folder import (
    begin_run,
    choose_run_dir,
    find_checkpoint,
    forget_run_dir,
    refuse_foreign_resume,
    resume_run,
    write_config,
    write_summary,
)
from rlhf_lightning.commands.schema import Train
from rlhf_lightning.commands.spelling import keys_under
from rlhf_lightning.commands.store_check import check_tracking
from rlhf_lightning.commands.thread_caches import restart_without_thread_caches
from rlhf_lightning.commands.tracking import (
    PipelineRun,
    finish_tracking,
    log_run_files,
    open_tracking,
    register_model,
    tracked_to_the_end,
    ui_command,
    uses_mlflow,
)
from rlhf_lightning.commands.validation import validate
from rlhf_lightning.errors import AfterTrainingError, DiskError, UserError, blaming
from rlhf_lightning.stopping import advising, held, signal_of

HIGHEST = "highest"  # torch's default of `matmul_precision`


@dataclass(frozen=True)
class RunResult:
    """What a run leaves: its folder, the content of its summary.json, and what has failed after the training."""

    folder: Path
    summary: dict[str, Any]
    problems: tuple[str, ...] = ()


def main() -> None:
    """The entry point of rlhf-train."""
    restart_without_thread_caches("rlhf-train")
    run_hydra_command("rlhf-train", "train", train, train_help, check_all)


def train(config: dict[str, Any]) -> None:
    """Check the config, then explain it or run it."""
    check_all(config)
    if config.get("explain"):
        print(explain(config))
        return
    place = Place()
    with advising(place.advice), saying_how_to_go_on(place.advice):
        result = run(config, place=place)
        print_end(result.folder, config)
        report_problems({result.folder: result.problems} if result.problems else {})


def check_all(config: Mapping[str, Any]) -> None:
    """`check`, and that what the run reads is there. Raises UserError."""
    check(config)
    if not config.get("explain"):
        check_inputs(config)


def check(config: Mapping[str, Any], prefix: str = "") -> None:
    """Everything that can be known to be wrong without importing torch.

    Args:
        config: a training config.
        prefix: what the user writes before its keys, such as `stages.ppo.`.

    Raises:
        UserError: one line about the first thing.
    """
    with keys_under(prefix):
        check_data_kind(config)
    validate(config, Train, prefix)
    with keys_under(prefix):
        check_sections(config)
        check_effects(config)


def run(
    config: Mapping[str, Any],
    parent: PipelineRun | None = None,
    begun: Callable[[], object] = lambda: None,
    place: Place | None = None,
) -> RunResult:
    """Train, export and summarise; rlhf-train and every stage of rlhf-pipeline end up here.

    Nothing of the run stays in memory: the next stage, or the evaluation, loads networks of its own.

    Args:
        config: a checked training config.
        parent: the run of the pipeline that this run belongs to.
        begun: called by the first process once everything is loaded, before the run takes over its folder.
        place: is told how far the run has come.
    """
    result = _run(config, parent, begun, place or Place())

    import torch

    from rlhf_lightning.models.release import release_memory

    torch.set_float32_matmul_precision(HIGHEST)
    release_memory()
    return result


def _run(config: Mapping[str, Any], parent: PipelineRun | None, begun: Callable[[], object], place: Place) -> RunResult:
    with contextlib.ExitStack() as at_end:
        return _run_in_folder(config, parent, at_end, begun, place)


def _run_in_folder(
    config: Mapping[str, Any],
    parent: PipelineRun | None,
    at_end: contextlib.ExitStack,
    begun: Callable[[], object],
    place: Place,
) -> RunResult:
    started = time.monotonic()
    with blaming(f"ckpt: {config.get('ckpt')} cannot be resumed"):
        checkpoint = find_checkpoint(config)
        if checkpoint is not None:
            check_same_run(config, checkpoint)
    run_dir = place.folder = choose_run_dir(config, checkpoint)
    place.ckpt = config.get("ckpt") or ("last" if checkpoint else None)
    lock = at_end.enter_context(FolderLock(run_dir))
    with blaming(f"run_dir: {run_dir} cannot be used"):
        if checkpoint is None:
            refuse_foreign_resume(run_dir)
        if first_process():
            check_run_dir(run_dir)
            lock.check()
    check_devices(config["trainer"])
    if uses_mlflow(config):
        check_tracking(config["logger"]["tracking_uri"])

    import lightning
    import torch

    from rlhf_lightning.commands.build import build_datamodule, build_module, build_trainer, prepare
    from rlhf_lightning.commands.rehearsal import rehearse_objects
    from rlhf_lightning.commands.run_start import StartRun
    from rlhf_lightning.compat import leave_signals_alone
    from rlhf_lightning.models import load_tokenizer

    rehearse_objects(config)
    prepare(config)
    torch.set_float32_matmul_precision(config.get("matmul_precision", HIGHEST))
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    tokenizer = load_tokenizer(config["model"]["path"], config["model"].get("revision"))
    module = build_module(config, tokenizer)
    module.accepts_other_rows = bool(config.get("resume_anyway"))  # type: ignore[assignment]
    datamodule = build_datamodule(config, tokenizer)
    trainer = build_trainer(config, run_dir, parent, checkpoint)
    leave_signals_alone(trainer)
    at_end.enter_context(tracked_to_the_end(trainer.loggers, run_dir, stage=parent is not None))
    at_end.push(lambda kind, error, trace: _end_processes(trainer, error))
    start = place.start = StartRun(lambda: _take_over(config, run_dir, checkpoint, trainer.loggers, lock, begun))
    trainer.callbacks.insert(0, start)  # type: ignore[attr-defined]
    aftermath = Aftermath()
    fit(trainer, lambda: _start_or_resume(config, trainer, module, datamodule, checkpoint, start), aftermath)
    start()  # of a run that had nothing left to train
    with blaming_own_code(config):
        export_model(module.export, run_dir)  # type: ignore[arg-type]
    summary = _summary(config, trainer, started, aftermath)
    if first_process():
        _leave_behind(config, run_dir, summary, tokenizer, trainer.loggers, aftermath, stage=parent is not None)
    trainer.strategy.barrier("export")  # a next stage reads the folder in every process
    forget_run_dir()
    return RunResult(run_dir, summary, tuple(aftermath.problems))


def _start_or_resume(
    config: Mapping[str, Any], trainer: Any, module: Any, datamodule: Any, checkpoint: Path | None, start: Any
) -> None:
    """Train. What goes wrong while a checkpoint is taken up, before the first step, is the checkpoint's."""
    if checkpoint is not None and checkpoint.is_dir():
        from rlhf_lightning.compat import read_sharded_checkpoints_without_pickles

        read_sharded_checkpoints_without_pickles()
    try:
        with blaming_own_code(config):
            trainer.fit(module, datamodule, ckpt_path=checkpoint)
    except Exception:
        if checkpoint is None or start.resumed:
            raise
        with blaming(f"ckpt: {checkpoint} does not fit this run", "take another one, or start without ckpt"):
            raise


def _take_over(
    config: Mapping[str, Any],
    run_dir: Path,
    checkpoint: Path | None,
    loggers: Sequence[Any],
    lock: Any,
    begun: Callable[[], object],
) -> None:
    """Make the folder this run's, and begin its run in MLflow."""
    if not first_process():
        return
    with held():
        begun()
        lock.take()
        write_config(
            run_dir, config, lambda: begin_run(run_dir) if checkpoint is None else resume_run(run_dir, checkpoint)
        )
    open_tracking(loggers, run_dir)


def _end_processes(trainer: Any, error: BaseException | None) -> None:
    """End those that Lightning has started, if the run was stopped: they may wait for this one in a library."""
    processes = getattr(trainer.strategy.launcher, "procs", None)
    if processes and error is not None and signal_of(error) is not None:
        started = list(processes)
        processes.clear()  # else Lightning's observer would kill this process, because others have not ended well
        for process in started:
            process.kill()


def _summary(config: Mapping[str, Any], trainer: Any, started: float, aftermath: Aftermath) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    with aftermath.step("the metrics of summary.json"):
        summary |= summarise(config, trainer)
    return {**summary, "wall_seconds": round(time.monotonic() - started, 2)}


def _leave_behind(
    config: Mapping[str, Any],
    run_dir: Path,
    summary: Mapping[str, Any],
    tokenizer: Any,
    loggers: Sequence[Any],
    aftermath: Aftermath,
    stage: bool,
) -> None:
    """The summary, the model card, the artifacts and the registered model: each whether or not the others fail."""
    with aftermath.step("summary.json"):
        write_summary(run_dir, summary)
    with aftermath.step("the model card"):
        _write_card(config, run_dir, tokenizer)
    with aftermath.step("the files in MLflow"):
        log_run_files(loggers, run_dir)
    registering: list[Future[str]] = []
    if config.get("register"):
        with aftermath.step(f"registering {config['register']}"):
            registering.append(register_model(loggers, config["register"], run_dir))
    with aftermath.step("the end of the run in MLflow"):
        finish_tracking(loggers, run_dir, stage)
    for version in registering:
        with aftermath.step(f"registering {config['register']}"):
            print(f"registered: {config['register']}, version {_version(version)}")


def _version(made: Future[str]) -> str:
    return "none yet, for the store does not answer" if made.cancelled() or not made.done() else made.result()


def report_problems(problems: Mapping[Path, Sequence[str]]) -> None:
    """Say what has failed after training, by the folder of the run or the pipeline.

    Raises:
        AfterTrainingError: something has.
    """
    if problems and first_process():
        text = "; ".join(f"{', '.join(failed)} of {folder}" for folder, failed in problems.items())
        raise AfterTrainingError(
            f"the model is trained and exported, but this failed: {text}; see there, and log or write "
            "it again with the same command and ckpt=last, which trains nothing again"
        )


def _write_card(config: Mapping[str, Any], run_dir: Path, tokenizer: Any) -> None:
    model, trained = run_dir / "model", read_run(run_dir)
    assert trained is not None
    write_model_card(trained, model, name=str(config["name"]), load_from=str(model), chat=bool(tokenizer.chat_template))


def summarise(config: Mapping[str, Any], trainer: Any) -> dict[str, Any]:
    """The final metrics of a run as one flat object; values that are not finite become null."""
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


@contextlib.contextmanager
def saying_how_to_go_on(how: Callable[[], str]) -> Iterator[None]:
    """Where the disk takes no more, say with `how` what to do when it does."""
    try:
        yield
    except DiskError as error:
        then = how()
        joined = "; " if then.startswith("there is no") else ", and "
        raise UserError(f"{error.finding}; {error.remedy}{joined}{then}") from error


def print_end(folder: Path, config: Mapping[str, Any], made: Collection[Path] = ()) -> None:
    """The last lines of a run: its folder, and how to look at it in MLflow."""
    if not first_process():
        return
    print(f"run folder: {folder}")
    for path in made:
        print(f"report: {path}")
    if uses_mlflow(config):
        print(ui_command(config["logger"]["tracking_uri"]))
