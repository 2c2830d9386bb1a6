"""MLflow around a run: its outbox, the parent run of a pipeline, parameters, artifacts. MLflow is imported late."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.commands.mlflow_runs import (
    FILE,
    clear_behind,
    earlier_rows,
    forget_version,
    go_on,
    has_latest,
    is_behind,
    keep_run,
    keep_version,
    known_points,
    live_run,
    log_missing,
    log_parameters,
    mark_behind,
    points_of_rows,
    step_of,
)
from rlhf_lightning.commands.redaction import HIDDEN, shown, without_secrets
from rlhf_lightning.commands.run_folder import read_json_lines
from rlhf_lightning.stopping import signal_of

if TYPE_CHECKING:
    from rlhf_lightning.callbacks import SteadyMLFlowLogger
    from rlhf_lightning.callbacks.notice import Notice
    from rlhf_lightning.callbacks.tracker import Outbox

_LONGEST = 30.0  # seconds that the end of a run waits for its store in all, and ...
_BYTES_PER_SECOND = 10e6  # ... a second more for so many bytes of the model
_A_MOMENT = 2.5  # seconds that it waits without a word
_OF_A_STAGE = 2.0  # seconds that a stage waits for a store that takes nothing: its pipeline's end tries again
_OF_A_STOP = 4.0  # seconds that a run which was stopped waits: whoever stops it may not wait long


def uses_mlflow(config: Mapping[str, Any]) -> bool:
    """Whether the logger section is MLflow's."""
    return str((config.get("logger") or {}).get("_target_", "")).endswith("MLFlowLogger")


def artifact_location(uri: str) -> str | None:
    """Artifacts of a local store lie beside its file, wherever a command is called; a server has its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlartifacts").as_uri()


def ui_command(uri: str) -> str:
    """The command that opens MLflow's pages on a store."""
    return f"open {shown(uri)}" if uri.startswith("http") else f"mlflow ui --backend-store-uri {shown(uri)}"


def flat_parameters(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Every value of a config by its dotted key, cut to the 250 characters that MLflow keeps.

    >>> flat_parameters({"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}})
    {'optimizer.lr': '0.1', 'optimizer.betas': '[0.9, 0.99]'}
    """
    flat: dict[str, str] = {}
    for name, value in without_secrets(config).items():
        key = f"{prefix}{name}".replace(":", "_").replace("@", "_")
        if isinstance(value, Mapping) and value:
            flat |= flat_parameters(value, f"{key}.")
        else:
            flat[key] = str(value)[:250]
    return flat


def store_notice(uri: str, folder: Path) -> Notice:
    """What says, in one line, that a store does not take a run, and how to send it later."""
    from rlhf_lightning.callbacks.notice import Notice

    given_again = " tracking_uri=<its address, with the password>" if HIDDEN in shown(uri) else ""
    later = f"rlhf-track run={shlex.quote(str(folder))}{given_again}"
    return Notice(shown(uri), later, say=lambda line: print(line, file=sys.stderr, flush=True), clean=shown)


# ---- a training run


def join_run(
    logger: SteadyMLFlowLogger,
    config: Mapping[str, Any],
    run_dir: Path,
    parent: PipelineRun | None,
    checkpoint: Path | None,
) -> None:
    """Have a logger begin the run, or go on in the one that the folder has, once it is opened.

    Args:
        logger: of the run.
        config: of the run.
        run_dir: its folder.
        parent: the pipeline's run.
        checkpoint: what is resumed.
    """
    uri, run = config["logger"]["tracking_uri"], logger.new_run

    def find(client: Any) -> str | None:
        if parent is not None and parent.run_id is not None:
            run.tags["mlflow.parentRunId"] = parent.run_id
        former: str | None = config["logger"].get("run_id")
        if former is None and checkpoint is not None:
            former = live_run(run_dir, client, uri)
        if former is not None:
            go_on(client, former, run.tags)
            if checkpoint is not None:
                rows = read_json_lines(run_dir / "metrics.jsonl")
                names = points_of_rows(rows, logger.name_prefix)
                logger.known = known_points(client, former, names, step_of(checkpoint) or 0)
        elif checkpoint is not None:
            rows = earlier_rows(checkpoint)
            logger.outbox.call(
                "its earlier metrics",
                lambda: log_missing(client, str(logger.opened), rows, logger.name_prefix, logger.send_points),
            )
        logger.outbox.troubled |= checkpoint is not None  # its end looks for what an earlier part has not sent
        return former

    logger.opens_itself = False
    logger.find_run = find
    logger.when_open = lambda client, run_id: keep_run(run_dir, uri, run_id)
    logger.submit(lambda client, run_id: log_parameters(client, run_id, flat_parameters(config)), "its parameters")
    logger.is_new = checkpoint is None


def open_tracking(loggers: Iterable[Any], run_dir: Path) -> None:
    """Begin the run in MLflow, if it is tracked there."""
    logger = _mlflow_logger(loggers)
    if logger is not None:
        if logger.is_new:
            (run_dir / FILE).unlink(missing_ok=True)  # the runs of an earlier one in this folder are not this run's
        logger.open()


def log_run_files(loggers: Iterable[Any], run_dir: Path) -> None:
    """Queue the run folder's small files, plots and exported model as artifacts of its MLflow run, if it has one."""
    logger = _mlflow_logger(loggers)
    if logger is not None:
        logger.submit(partial(_send_missing, logger, run_dir), "metrics", key="all metrics", after="metrics")
        for label, key, attach in files_of(run_dir):
            logger.submit(attach, label, key=key, upload=True)


def _send_missing(logger: SteadyMLFlowLogger, run_dir: Path, client: Any, run_id: str) -> None:
    """Compare the store with `metrics.jsonl`: in full where something has failed, else whether the end is there."""
    rows, prefix = read_json_lines(run_dir / "metrics.jsonl"), logger.name_prefix
    if logger.outbox.troubled or not has_latest(client, run_id, rows, prefix):
        log_missing(client, run_id, rows, prefix, logger.send_points)


def files_of(run_dir: Path) -> Iterator[tuple[str, str, Callable[[Any, str], object]]]:
    """What of a run folder becomes an artifact: in words, a key, and the call that logs it. Links are left out."""
    for pattern in ("config.yaml", "summary.json", "*.png", "*.html"):
        for file in sorted(file for file in run_dir.glob(pattern) if not file.is_symlink()):
            yield "its files", f"file {file.name}", partial(_attach, file=file)
    model = run_dir / "model"
    if model.is_symlink() or any(path.is_symlink() for path in model.rglob("*")):
        return
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        place = "/".join(("model", *file.relative_to(model).parts[:-1]))
        yield "the model", f"model {file.relative_to(model)}", partial(_attach, file=file, place=place)


def _attach(client: Any, run_id: str, file: Path, place: str | None = None) -> None:
    client.log_artifact(run_id, str(file), place)


def register_model(loggers: Iterable[Any], name: str, run_dir: Path) -> Future[str]:
    """Queue that the logged model folder becomes a new version of the registered model `name`.

    The version points to the run's artifacts, so `models:/<name>/<version>` is the exported folder.

    Returns:
        the version, once the store has answered.
    """
    logger = _mlflow_logger(loggers)
    assert logger is not None, "checked before the run"
    forget_version(run_dir, logger.uri)

    def register(client: Any, run_id: str) -> str:
        version = add_version(client, run_id, name)
        keep_version(run_dir, logger.uri, version)
        return version

    return logger.submit(register, f"the registered model {name}", after="model ", quiet=True)


def add_version(client: Any, run_id: str, name: str) -> str:
    """Make the run's model a new version of a registered model, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    if made := [each for each in client.search_model_versions(f"name='{name}'") if each.run_id == run_id]:
        return str(max(int(each.version) for each in made))  # the answer to an earlier attempt was lost
    return str(client.create_model_version(name, source, run_id).version)


def finish_tracking(loggers: Iterable[Any], run_dir: Path, stage: bool = False) -> None:
    """Wait for the store at the end of a run; what it does not take is left to rlhf-track, with one line.

    Args:
        loggers: of the run.
        run_dir: its folder.
        stage: it belongs to a pipeline, which tries again at its end.
    """
    logger = _mlflow_logger(loggers)
    if logger is None or not logger.outbox.opened:
        return
    logger.end()
    _wait(logger.outbox, _seconds_for(run_dir), _OF_A_STAGE if stage else None)
    _close(logger.outbox, run_dir, logger.uri, logger.new_run.key, silent=stage)


@contextmanager
def tracked_to_the_end(loggers: Iterable[Any], run_dir: Path, stage: bool = False) -> Iterator[None]:
    """Around a run: one that is stopped, or that fails, ends in its store as well. Arguments as `finish_tracking`."""
    logger = _mlflow_logger(loggers)
    try:
        yield
    except BaseException as error:
        if logger is not None and logger.outbox.opened:
            logger.status = "FAILED" if signal_of(error) is None else "KILLED"
            logger.end()
            logger.outbox.wait(_OF_A_STOP, _OF_A_STOP)
            _close(logger.outbox, run_dir, logger.uri, logger.new_run.key, silent=stage)
        raise
    finally:
        if logger is not None:
            logger.outbox.close()


def _wait(outbox: Outbox, seconds: float, patience: float | None) -> None:
    """Wait for a store, and say so where that takes more than a moment."""
    if not outbox.wait(_A_MOMENT, patience) and (patience is None or patience > _A_MOMENT):
        print(f"tracking: waiting for {outbox.notice.store}", flush=True)
        outbox.wait(seconds - _A_MOMENT, patience)


def _close(outbox: Outbox, folder: Path, uri: str, key: str, silent: bool = False, further: Iterable[str] = ()) -> None:
    """Say, and note in the folder, what a store has not got."""
    left = list(dict.fromkeys([*outbox.close(), *further]))
    if not left:
        clear_behind(folder, uri)
        if outbox.notice.said_outage and not silent:
            print(f"tracking: {outbox.notice.store} has all of the run", flush=True)
        return
    mark_behind(folder, uri, key)
    if not silent:
        line = outbox.notice.left(_in_words(left))
        if outbox.notice.said_outage:  # one line on standard error has said it, and how to send it
            print(line, flush=True)
        else:
            outbox.notice.say(line)


def _in_words(things: list[str]) -> str:
    return " and ".join(([", ".join(things[:-1])] if things[:-1] else []) + things[-1:])


def _mlflow_logger(loggers: Iterable[Any]) -> Any:
    return next((each for each in loggers if type(each).__name__ == "SteadyMLFlowLogger"), None)


# ---- a pipeline


class PipelineRun:
    """The parent run of a pipeline: stage runs name it in their tag `mlflow.parentRunId`. It begins when it is opened.

    Args:
        uri: of the tracking store.
        experiment_name: of MLflow's experiment, made if there is none.
        name: of a new run.
        folder: of the pipeline, which keeps the run's id.
        goes_on: the pipeline begins with a later stage: its former run goes on.
        stages: the folders of its stages.
    """

    def __init__(
        self,
        uri: str,
        experiment_name: str,
        name: str,
        folder: Path,
        goes_on: bool = False,
        stages: Sequence[Path] = (),
    ) -> None:
        import mlflow  # noqa: F401 - here, not first in the thread

        from rlhf_lightning.callbacks.mlflow_store import NewRun, connect
        from rlhf_lightning.callbacks.tracker import Outbox, tracker_of

        self.client: Any = None
        self.run_id: str | None = None
        self.uri, self.folder, self.goes_on, self.stages = uri, folder, goes_on, list(stages)
        self.notice = store_notice(uri, folder)
        self.new_run = NewRun(experiment_name, name, {"run_dir": str(folder)}, artifact_location(uri))

        def begin() -> None:
            self.client = self.client or connect(uri)
            former = live_run(folder, self.client, uri) if goes_on else None
            if former is not None:
                go_on(self.client, former, {})
            self.run_id = self.run_id or former or self.new_run.make(self.client)
            self.new_run.keep_one(self.client, self.run_id)
            keep_run(folder, uri, self.run_id)

        self.outbox = Outbox(tracker_of(uri), begin, lambda points: None, self.notice, local=uri.startswith("sqlite:"))

    def open(self) -> None:
        """Begin the run, or go on in the former one."""
        if not self.goes_on:
            (self.folder / FILE).unlink(missing_ok=True)
        self.outbox.open()

    def finish(self, metrics: Mapping[str, Any], config: Mapping[str, Any], files: Iterable[Path]) -> None:
        """Log the summary, the config and the report, send what stages have not sent, and end the run."""
        from rlhf_lightning.commands.sending import send_run

        parameters = flat_parameters(config)
        self.outbox.call("its parameters", lambda: log_parameters(self.client, str(self.run_id), parameters))
        self.outbox.call("its summary", lambda: log_summary(self.client, str(self.run_id), metrics))
        for file in list(files):
            self.outbox.call(
                "its files",
                lambda file=file: self.client.log_artifact(self.run_id, str(file)),  # type: ignore[misc]
                key=f"file {file}",
                upload=True,
            )
        behind = [folder for folder in self.stages if is_behind(folder, self.uri)]
        for folder in behind:
            self.outbox.call(
                f"stage {folder.name}",
                lambda folder=folder: send_run(folder, self.client, self.uri, self.run_id),  # type: ignore[misc]
                upload=True,
            )
        self._end("FINISHED", _seconds_for(*behind), None)

    def fail(self, stopped: bool = False) -> None:
        """End the run as failed, or as stopped."""
        self._end("KILLED" if stopped else "FAILED", _OF_A_STOP, _OF_A_STOP)

    def _end(self, status: str, seconds: float, patience: float | None) -> None:
        if self.outbox.opened:
            self.outbox.call("its end", lambda: self.client.set_terminated(self.run_id, status), last=True)
            _wait(self.outbox, seconds, patience)
            behind = [f"stage {folder.name}" for folder in self.stages if is_behind(folder, self.uri)]
            _close(self.outbox, self.folder, self.uri, self.new_run.key, further=behind)


def _seconds_for(*folders: Path) -> float:
    """How long the end of a run waits for its store: longer where models have to be sent."""
    files = [file for folder in folders for file in (folder / "model").rglob("*") if file.is_file()]
    return _LONGEST + sum(file.stat().st_size for file in files) / _BYTES_PER_SECOND


def log_summary(client: Any, run_id: str, metrics: Mapping[str, Any]) -> None:
    """Log the numbers of a summary, once."""
    from mlflow.entities import Metric

    latest, now = client.get_run(run_id).data.metrics, int(time.time() * 1000)
    points = points_of_rows([{name: value for name, value in metrics.items() if isinstance(value, int | float)}])
    new = [(name, values[0]) for name, values in points.items() if latest.get(name) != values[0]]
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in new])
