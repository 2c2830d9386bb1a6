"""MLflow around a run: server check, parent run of a pipeline, parameters, artifacts. MLflow is imported late."""

from __future__ import annotations

import base64
import contextlib
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, TimeoutError
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.lineage import TrainingRun
from rlhf_lightning.commands.mlflow_runs import (
    clear_behind,
    go_on,
    keep_run,
    live_run,
    log_missing,
    log_parameters,
    mark_behind,
)
from rlhf_lightning.commands.redaction import shown, without_secrets
from rlhf_lightning.errors import UserError, blaming

_PATIENCE = 3.0  # seconds; MLflow itself retries a dead server for four minutes


def uses_mlflow(config: Mapping[str, Any]) -> bool:
    """Whether the logger section is MLflow's."""
    return str((config.get("logger") or {}).get("_target_", "")).endswith("MLFlowLogger")


_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")  # a driver may follow: mysql+x


def check_tracking(uri: str, resumed: bool = False) -> None:
    """Make sure that the tracking store can be written to, before anything is trained.

    Args:
        uri: where it is.
        resumed: a run goes on: a server that does not answer gets the rest later, and is only said.

    Raises:
        UserError: not the address of a store, a file that is not a database, or a server that does not answer within a
            few seconds.
    """
    scheme = uri.partition(":")[0].partition("+")[0].lower()
    if scheme not in _SCHEMES:
        raise UserError(
            f'logger.tracking_uri: found "{shown(uri)}"; allowed: sqlite:///file.db, http(s)://host:port, or the '
            "address of a PostgreSQL, MySQL or SQL Server database"
        )
    if uri.startswith("sqlite:///"):
        _check_sqlite(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    if scheme not in ("http", "https"):
        return
    try:
        urllib.request.urlopen(_health_request(uri), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it is MLflow shows at the first call
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        if resumed:
            return
        raise UserError(
            f"logger.tracking_uri: no answer from {shown(uri)} ({reason}); start the server, correct the address, "
            "or use logger=none"
        ) from error


def _check_sqlite(file: Path) -> None:
    with blaming(f"logger.tracking_uri: {file.parent} cannot be made"):
        file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise UserError(f"logger.tracking_uri: {file} is a folder; allowed: sqlite:///<file>")
    if file.is_file() and file.stat().st_size and not _begins_with(file, b"SQLite format 3"):
        raise UserError(f"logger.tracking_uri: {file} is not an SQLite database; name another file")


def _begins_with(file: Path, mark: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(mark)) == mark


def _health_request(uri: str) -> urllib.request.Request:
    """A user and password in the address go into a header: urllib takes them for a port."""
    parts = urllib.parse.urlsplit(uri)
    credentials, _, host = parts.netloc.rpartition("@")
    address = urllib.parse.urlunsplit((parts.scheme, host, f"{parts.path.rstrip('/')}/health", "", ""))
    if not credentials:
        return urllib.request.Request(address)
    encoded = base64.b64encode(urllib.parse.unquote(credentials).encode()).decode()
    return urllib.request.Request(address, headers={"Authorization": f"Basic {encoded}"})


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


class PipelineRun:
    """The parent run of a pipeline: stage runs name it in their tag `mlflow.parentRunId`.

    Args:
        uri: of the tracking store.
        experiment_name: of MLflow's experiment, made if there is none.
        name: of a new run.
        folder: of the pipeline, which keeps the run's id.
        goes_on: the pipeline begins with a later stage: its former run goes on.
    """

    def __init__(self, uri: str, experiment_name: str, name: str, folder: Path, goes_on: bool = False) -> None:
        from mlflow import MlflowClient

        from rlhf_lightning.callbacks.tracker import PATIENCE, tracker_of

        self.client: Any = None
        self.run_id: str | None = None
        self.tracker = tracker_of(uri, shown(uri))

        def begin() -> None:
            self.client = MlflowClient(uri)
            former = live_run(folder, uri) if goes_on else None
            if former is not None:
                go_on(self.client, former, {})
            experiment = _experiment(self.client, uri, experiment_name)
            self.run_id = former or self.client.create_run(experiment, run_name=name).info.run_id
            keep_run(folder, uri, self.run_id)

        with contextlib.suppress(TimeoutError, CancelledError):
            self.tracker.submit(begin).result(timeout=PATIENCE)

    def finish(self, metrics: Mapping[str, float], config: Mapping[str, Any], files: Iterable[Path]) -> None:
        """Log the summary, the config and the report, and end the run."""
        parameters, listed = flat_parameters(config), list(files)

        def finish() -> None:
            log_parameters(self.client, str(self.run_id), parameters)
            for name, value in metrics.items():
                self.client.log_metric(self.run_id, metric_name(name), value)
            for file in listed:
                self.client.log_artifact(self.run_id, str(file))
            self.client.set_terminated(self.run_id)

        self._end(finish)

    def fail(self) -> None:
        """End the run as failed."""
        self._end(lambda: self.client.set_terminated(self.run_id, "FAILED"))

    def _end(self, call: Callable[[], object]) -> None:
        self.tracker.submit(call)
        self.tracker.wait()


def _experiment(client: Any, uri: str, name: str) -> str:
    """The id of an experiment, which is made if there is none."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    return str(client.create_experiment(name, artifact_location(uri)))


def metric_name(name: str) -> str:
    """The name with what MLflow does not allow replaced."""
    from rlhf_lightning.callbacks.mlflow_logger import allowed_name

    return allowed_name(name)


def open_tracking(loggers: Iterable[Any]) -> None:
    """Begin the run in MLflow, if it is tracked there."""
    logger = _mlflow_logger(loggers)
    if logger is not None:
        logger.open()


def log_run_files(loggers: Iterable[Any], run_dir: Path) -> None:
    """Queue the run folder's small files, plots and exported model as artifacts of its MLflow run, if it has one."""
    logger = _mlflow_logger(loggers)
    if logger is None:
        return

    logger.submit(lambda client, run_id: attach_files(client, run_id, run_dir))


def attach_files(client: Any, run_id: str, run_dir: Path) -> None:
    """Log the run folder's small files, plots and exported model as artifacts. What a link leads to is not sent."""
    model = run_dir / "model"
    files = [file for pattern in ("config.yaml", "summary.json", "*.png", "*.html") for file in run_dir.glob(pattern)]
    for file in sorted(file for file in files if not file.is_symlink()):
        client.log_artifact(run_id, str(file))
    if model.is_symlink() or any(path.is_symlink() for path in model.rglob("*")):
        return
    if model.is_dir():
        client.log_artifacts(run_id, str(model), "model")


def register_model(loggers: Iterable[Any], name: str) -> str | None:
    """Make the logged model folder a new version of the registered model `name`.

    The version points to the run's artifacts, so `models:/<name>/<version>` is the exported folder.

    Returns:
        the version; None if the store does not answer.
    """
    logger = _mlflow_logger(loggers)
    assert logger is not None, "checked before the run"

    def register() -> str:
        from mlflow.exceptions import MlflowException

        client, run_id = logger.experiment, logger.run_id
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        return str(client.create_model_version(name, source, run_id).version)

    future: Future[str] = logger.tracker.submit(register)
    return future.result() if logger.tracker.wait() else None


def send_again(run: TrainingRun, folder: Path, uri: str) -> int:
    """Send what the store lacks of a run; returns how many values of metrics that was."""
    from mlflow import MlflowClient

    from rlhf_lightning.commands.arithmetic import is_ppo

    client = MlflowClient(uri)
    section = run.config.get("logger") or {}
    run_id = live_run(folder, uri)
    if run_id is None:
        experiment = _experiment(client, uri, str(section.get("experiment_name", "rlhf-lightning")))
        name = str(section.get("run_name") or run.config.get("name"))
        run_id = client.create_run(experiment, run_name=name, tags={"run_dir": str(folder)}).info.run_id
        keep_run(folder, uri, str(run_id))
    log_parameters(client, str(run_id), flat_parameters(run.config))
    points = log_missing(client, str(run_id), folder, logs_at_epoch_end=is_ppo(run.config))
    attach_files(client, str(run_id), folder)
    if run.summary:
        client.set_terminated(run_id)
    clear_behind(folder, uri)
    return points


def finish_tracking(config: Mapping[str, Any], run_dir: Path) -> None:
    """Wait for the store at the end of a run; what it does not take is left to rlhf-track, with one line."""
    if not uses_mlflow(config):
        return
    from rlhf_lightning.callbacks.tracker import tracker_of

    uri = config["logger"]["tracking_uri"]
    tracker = tracker_of(uri, shown(uri))
    if not tracker.wait():
        tracker.give_up()
        mark_behind(run_dir, uri)
        sys.stderr.write(f"tracking: {shown(uri)} has not got all of this run; send it with rlhf-track run={run_dir}\n")


def _mlflow_logger(loggers: Iterable[Any]) -> Any:
    return next((each for each in loggers if type(each).__name__ == "SteadyMLFlowLogger"), None)
