"""Which MLflow run a run folder has, so that a resumed run goes on in its own.

`mlflow.json` in the run folder says it, by tracking store. Where that run cannot be had any more (another store, a
deleted run, a copy of the folder beside the original), a new one begins with what `metrics.jsonl` holds up to the
checkpoint. MLflow is imported late.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.redaction import without_secrets
from rlhf_lightning.commands.run_folder import read_json_lines, run_of_checkpoint
from rlhf_lightning.durable import read_manifest, write_text_durably

FILE = "mlflow.json"
_PER_REQUEST = 100  # parameters
_METRICS_PER_REQUEST = 1000
_OF_A_COMMAND = {"ckpt", "run_dir", "resume_anyway", "explain"}  # say how a run was called, not what it is


def live_run(folder: Path, uri: str) -> str | None:
    """The id of the folder's own run in a store, if it is still there."""
    run_id = _own_runs(folder).get(_store(uri))
    if run_id is None:
        return None
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        found = MlflowClient(uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return run_id if found.info.lifecycle_stage == "active" else None


def keep_run(folder: Path, uri: str, run_id: str) -> None:
    """Note the folder's run in a store, beside its runs in other stores."""
    content = {**_read(folder), "folder": str(folder.resolve()), "runs": {**_own_runs(folder), _store(uri): run_id}}
    folder.mkdir(parents=True, exist_ok=True)
    write_text_durably(folder / FILE, json.dumps(content, indent=2) + "\n")


def go_on(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """The run runs again; its tags say where."""
    client.update_run(run_id, status="RUNNING")
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def log_parameters(client: Any, run_id: str, parameters: Mapping[str, str]) -> None:
    """Log what the run does not have yet. MLflow refuses to change a parameter: a new value becomes a tag `changed.`"""
    from mlflow.entities import Param

    former = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in parameters.items() if key not in former]
    for start in range(0, len(new), _PER_REQUEST):
        client.log_batch(run_id, params=new[start : start + _PER_REQUEST])
    for key, value in parameters.items():
        if key in former and value != former[key] and key not in _OF_A_COMMAND:
            client.set_tag(run_id, f"changed.{key}", value)


def log_history(client: Any, run_id: str, checkpoint: Path, logs_at_epoch_end: bool) -> None:
    """Log the rows that the checkpoint's run has written until it was saved.

    Args:
        client: of the store.
        run_id: of the new run.
        checkpoint: what is resumed.
        logs_at_epoch_end: when Lightning's count of steps, which other rows get, has caught up with the optimiser's.
    """
    from mlflow.entities import Metric

    source = run_of_checkpoint(checkpoint)
    step, now = _step_of(checkpoint), int(time.time() * 1000)
    for row in read_json_lines(source / "metrics.jsonl") if source else []:
        if step is not None and row.get("step", 0) > step:
            break
        at = max(0, row.get("step", 0) - (not logs_at_epoch_end))
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        client.log_batch(run_id, metrics=[Metric(name, value, now, at) for name, value in values.items()])


def mark_behind(folder: Path, uri: str) -> None:
    """Note that the store has not got all of the run."""
    kept = _read(folder)
    behind = sorted({*kept.get("behind", []), _store(uri)})
    write_text_durably(folder / FILE, json.dumps({**kept, "behind": behind}, indent=2) + "\n")


def clear_behind(folder: Path, uri: str) -> None:
    """Note that it has."""
    kept = _read(folder)
    kept["behind"] = [store for store in kept.get("behind", []) if store != _store(uri)]
    write_text_durably(folder / FILE, json.dumps(kept, indent=2) + "\n")


def log_missing(client: Any, run_id: str, folder: Path, logs_at_epoch_end: bool) -> int:
    """Log the values of `metrics.jsonl` that the run does not have; returns how many. Arguments as `log_history`."""
    from mlflow.entities import Metric

    wanted: dict[str, dict[int, float]] = {}
    for row in read_json_lines(folder / "metrics.jsonl"):
        at = max(0, row.get("step", 0) - (not logs_at_epoch_end))
        for name, value in row.items():
            if name != "step" and value is not None:
                wanted.setdefault(name, {})[at] = value
    now = int(time.time() * 1000)
    points = []
    for name, values in wanted.items():
        known = {point.step for point in client.get_metric_history(run_id, name)}
        points += [Metric(name, value, now, at) for at, value in values.items() if at not in known]
    for start in range(0, len(points), _METRICS_PER_REQUEST):
        client.log_batch(run_id, metrics=points[start : start + _METRICS_PER_REQUEST])
    return len(points)


def _step_of(checkpoint: Path) -> int | None:
    steps = [entry["global_step"] for entry in read_manifest(checkpoint) if "global_step" in entry]
    return steps[0] if steps else None


def _own_runs(folder: Path) -> dict[str, str]:
    """Store -> run. A copy beside its original has none of its own yet; a folder that was moved keeps its runs."""
    kept = _read(folder)
    runs: dict[str, str] = kept.get("runs", {})
    former = kept.get("folder")
    is_copy = former not in (None, str(folder.resolve())) and _read(Path(former)).get("runs") == runs
    return {} if is_copy else runs


def _read(folder: Path) -> dict[str, Any]:
    try:
        kept = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _store(uri: str) -> str:
    """A store by one name, wherever a command is called, and without the password in its address."""
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return str(without_secrets(uri)).rstrip("/")
