"""MLflow around a run: server check, parent run of a pipeline, parameters, artifacts. MLflow is imported late."""

from __future__ import annotations

import base64
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.mlflow_runs import go_on, keep_run, live_run, log_parameters
from rlhf_lightning.commands.redaction import shown, without_secrets
from rlhf_lightning.errors import UserError

_PATIENCE = 3.0  # seconds; MLflow itself retries a dead server for four minutes


def uses_mlflow(config: Mapping[str, Any]) -> bool:
    """Whether the logger section is MLflow's."""
    return str((config.get("logger") or {}).get("_target_", "")).endswith("MLFlowLogger")


def check_tracking(uri: str) -> None:
    """Make sure that the tracking store can be written to, before anything is trained.

    Raises:
        UserError: a server does not answer within a few seconds.
    """
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    if not uri.startswith(("http://", "https://")):
        return
    try:
        urllib.request.urlopen(_health_request(uri), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return  # it answers; whether it is MLflow shows at the first call
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"logger.tracking_uri: no answer from {shown(uri)} ({reason}); start the server, correct the address, "
            "or use logger=none"
        ) from error


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

        self.client = MlflowClient(uri)
        former = live_run(folder, uri) if goes_on else None
        if former is not None:
            self.run_id = former
            go_on(self.client, former, {})
        else:
            self.run_id = self.client.create_run(self._experiment(uri, experiment_name), run_name=name).info.run_id
        keep_run(folder, uri, self.run_id)

    def _experiment(self, uri: str, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self.client.create_experiment(name, artifact_location(uri)))

    def finish(self, metrics: Mapping[str, float], config: Mapping[str, Any], files: Iterable[Path]) -> None:
        """Log the summary, the config and the report, and end the run."""
        log_parameters(self.client, self.run_id, flat_parameters(config))
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, metric_name(name), value)
        for file in files:
            self.client.log_artifact(self.run_id, str(file))
        self.client.set_terminated(self.run_id)

    def fail(self) -> None:
        """End the run as failed."""
        self.client.set_terminated(self.run_id, "FAILED")


def metric_name(name: str) -> str:
    """The name with what MLflow does not allow replaced."""
    return "".join(c if c.isalnum() or c in "_-. /:" else "_" for c in name)


def log_run_files(loggers: Iterable[Any], run_dir: Path) -> None:
    """Attach the run folder's small files, plots and exported model to its MLflow run, if it has one."""
    logger = _mlflow_logger(loggers)
    if logger is None:
        return
    client, run_id = logger.experiment, logger.run_id
    for pattern in ("config.yaml", "summary.json", "*.png", "*.html"):
        for file in sorted(run_dir.glob(pattern)):
            client.log_artifact(run_id, str(file))
    if (run_dir / "model").is_dir():
        client.log_artifacts(run_id, str(run_dir / "model"), "model")


def register_model(loggers: Iterable[Any], name: str) -> str:
    """Make the logged model folder a new version of the registered model `name`; returns the version.

    The version points to the run's artifacts, so `models:/<name>/<version>` is the exported folder.
    """
    from mlflow.exceptions import MlflowException

    logger = _mlflow_logger(loggers)
    assert logger is not None, "checked before the run"
    client, run_id = logger.experiment, logger.run_id
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/model"
    return str(client.create_model_version(name, source, run_id).version)


def _mlflow_logger(loggers: Iterable[Any]) -> Any:
    return next((each for each in loggers if type(each).__name__ == "MLFlowLogger"), None)
