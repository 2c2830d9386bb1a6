"""What is logged of a run: parameters, the summary, files, and a version of the registered model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.run import read_run
from rlhf_lightning.runs.run_folder import read_json_lines
from rlhf_lightning.secret_text import without_secrets
from rlhf_lightning.tracking.mlflow_runs import points_of_rows
from rlhf_lightning.tracking.model_file import put_model_file


def flat_parameters(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return every value of a config by its dotted key, cut to the 250 characters that MLflow keeps.

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


def files_of(run_dir: Path) -> Iterator[tuple[str, str, Callable[[Any, str], object]]]:
    """Yield what becomes an artifact of a run folder: its description, a key, and the call that logs it. No links."""
    for pattern in ("config.yaml", "summary.json", "*.png", "*.html"):
        for file in sorted(file for file in run_dir.glob(pattern) if not file.is_symlink()):
            yield "its files", f"file {file.name}", partial(_attach, file=file)
    model = run_dir / "model"
    if model.is_symlink() or any(path.is_symlink() for path in model.rglob("*")):
        return
    run = read_run(run_dir) if any(model.glob("*.json")) else None
    if run is not None:
        yield "the model", "model MLmodel", partial(put_model_file, run=run)
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        place = "/".join(("model", *file.relative_to(model).parts[:-1]))
        yield "the model", f"model {file.relative_to(model)}", partial(_attach, file=file, place=place)


def _attach(client: Any, run_id: str, file: Path, place: str | None = None) -> None:
    client.log_artifact(run_id, str(file), place)


def add_version(client: Any, run_id: str, name: str) -> str:
    """Create a new version of a registered model from the run's model; register the model if necessary."""
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


def log_summary(client: Any, run_id: str, metrics: Mapping[str, Any]) -> None:
    """Log the numbers of a summary, once."""
    from mlflow.entities import Metric

    latest, now = client.get_run(run_id).data.metrics, int(time.time() * 1000)
    points = points_of_rows([{name: value for name, value in metrics.items() if isinstance(value, int | float)}])
    new = [(name, values[0]) for name, values in points.items() if latest.get(name) != values[0]]
    client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in new])


def log_rounds(client: Any, run_id: str, folder: Path) -> None:
    """Log the metrics of a pipeline's rounds with the round as the step, once."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    for row in read_json_lines(folder / "rounds.jsonl"):
        step = int(row["round"])
        named = {f"rounds/{name}": value for name, value in row.items() if name != "round"}
        points = points_of_rows([named])
        first = next(iter(points), None)
        known = {point.step for point in client.get_metric_history(run_id, first)} if first else set()
        if step not in known:
            metrics = [Metric(name, values[0], now, step) for name, values in points.items()]
            client.log_batch(run_id, metrics=metrics)
