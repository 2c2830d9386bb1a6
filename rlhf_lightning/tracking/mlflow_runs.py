"""Which MLflow run a run folder has, and what that run lacks of the folder's content.

`mlflow.json` in the run folder records it by tracking store, so that a resumed run continues in its own. If that run is
no longer available (another store, a deleted run, a copy of the folder next to the original), a new one begins with
what `metrics.jsonl` contains up to the checkpoint. MLflow is imported late.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import write_text_durably
from rlhf_lightning.secret_text import without_secrets

FILE = "mlflow.json"
_PER_REQUEST = 100  # parameters per request
_OF_A_COMMAND = {"ckpt", "run_dir", "resume_anyway", "explain"}  # they say how a run was called, not what it is
_writing = threading.Lock()  # both the tracker's thread and the command write the file

Send = Callable[[list[Any]], object]


def live_run(folder: Path, client: Any, uri: str) -> str | None:
    """Return the id of the folder's own run in a store, if it still exists."""
    from mlflow.exceptions import MlflowException

    from rlhf_lightning.callbacks.mlflow_store import check_is_run

    run_id = _own_runs(folder).get(_store(uri))
    if run_id is None:
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    check_is_run(found, run_id)
    return run_id if found.info.lifecycle_stage == "active" else None


def keep_run(folder: Path, uri: str, run_id: str) -> None:
    """Note the folder's run in a store, next to its runs in other stores."""
    runs = {**_own_runs(folder), _store(uri): run_id}
    _note(folder, lambda kept: {"folder": str(folder.resolve()), "runs": runs})


def go_on(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Mark the run as running again; its tags say where."""
    client.update_run(run_id, status="RUNNING")
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def log_parameters(client: Any, run_id: str, parameters: Mapping[str, str]) -> None:
    """Log what the run does not have yet. MLflow refuses to change a parameter: a new value becomes a tag `changed.`"""
    from mlflow.entities import Param

    from rlhf_lightning.callbacks.tracker import allowed_name, is_refusal

    parameters = {allowed_name(key): value for key, value in parameters.items()}
    former = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in parameters.items() if key not in former]
    refused: Exception | None = None
    for start in range(0, len(new), _PER_REQUEST):
        batch = new[start : start + _PER_REQUEST]
        try:
            client.log_batch(run_id, params=batch)
        except Exception as error:
            if not is_refusal(error):
                raise
            refused = _one_by_one(client, run_id, batch) or refused
    for key, value in parameters.items():
        if key in former and value != former[key] and key not in _OF_A_COMMAND:
            client.set_tag(run_id, f"changed.{key}", value)
    if refused is not None:
        raise refused


def _one_by_one(client: Any, run_id: str, parameters: Iterable[Any]) -> Exception | None:
    """Log parameters one by one, since the store refuses one of them; return its error."""
    from rlhf_lightning.callbacks.tracker import is_refusal

    refused = None
    for parameter in parameters:
        try:
            client.log_batch(run_id, params=[parameter])
        except Exception as error:
            if not is_refusal(error):
                raise
            refused = error
    return refused


# ---- metrics


def points_of_rows(rows: Iterable[Mapping[str, Any]], prefix: str = "") -> dict[str, dict[int, float]]:
    """Return metric -> step -> value, with MLflow's names; null stands for a value that was not finite, NaN there."""
    from rlhf_lightning.callbacks.tracker import points_of

    points: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value, _, step in points_of(row.items(), row.get("step", 0), 0, prefix):
            if name != f"{prefix}step":
                points.setdefault(name, {}).setdefault(step, value)
    return points


def log_missing(client: Any, run_id: str, rows: Iterable[Mapping[str, Any]], prefix: str, send: Send) -> int:
    """Log the values that the run does not have; return how many.

    Args:
        client: MLflow's client of the store.
        run_id: the run's id.
        rows: rows of `metrics.jsonl`.
        prefix: put before the names in the store.
        send: sends a list of points.
    """
    from rlhf_lightning.callbacks.tracker import BATCH

    now, missing = int(time.time() * 1000), []
    for name, values in points_of_rows(rows, prefix).items():
        known = {point.step for point in client.get_metric_history(run_id, name)}
        missing += [(name, value, now, step) for step, value in values.items() if step not in known]
    for start in range(0, len(missing), BATCH):
        send(missing[start : start + BATCH])
    return len(missing)


def has_latest(client: Any, run_id: str, rows: Iterable[Mapping[str, Any]], prefix: str) -> bool:
    """Return whether the latest value of every metric has arrived: one call, for a run without problems."""
    latest = client.get_run(run_id).data.metrics
    for name, values in points_of_rows(rows, prefix).items():
        value = values[max(values)]
        if name not in latest or (math.isfinite(value) and latest[name] != value):
            return False
    return True


def known_points(client: Any, run_id: str, names: Iterable[str], after: int) -> dict[tuple[str, int], float]:
    """Return what a continued run already has of the steps after its checkpoint, which it repeats."""
    histories = {name: client.get_metric_history(run_id, name) for name in names}
    return {
        (name, point.step): point.value for name, found in histories.items() for point in found if point.step > after
    }


# ---- what the folder records about its stores


def mark_behind(folder: Path, uri: str, key: str | None = None) -> None:
    """Note that the store has not received all of the run.

    Args:
        folder: the run's folder.
        uri: the store's address.
        key: of an attempt to create the run there, which may have succeeded without an answer.
    """
    keys = {} if key is None else {_store(uri): key}
    _note(
        folder,
        lambda kept: {
            "behind": sorted({*kept.get("behind", []), _store(uri)}),
            "keys": {**kept.get("keys", {}), **keys},
        },
    )


def clear_behind(folder: Path, uri: str) -> None:
    """Note that the store has received all of the run."""
    if is_behind(folder, uri):
        _note(folder, lambda kept: {"behind": [store for store in kept["behind"] if store != _store(uri)]})


def is_behind(folder: Path, uri: str) -> bool:
    """Return whether the store has not received all of the run, as far as is known."""
    return _store(uri) in _read(folder).get("behind", [])


def key_of(folder: Path, uri: str) -> str | None:
    """Return the key of an unanswered attempt to create the run."""
    key = _read(folder).get("keys", {}).get(_store(uri))
    return None if key is None else str(key)


def keep_version(folder: Path, uri: str, version: str) -> None:
    """Note which version the folder's model is in the store's registry."""
    _note(folder, lambda kept: {"registered": {**kept.get("registered", {}), _store(uri): version}})


def forget_version(folder: Path, uri: str) -> None:
    """Forget the version, because the folder's model has changed."""
    if version_of(folder, uri) is not None:
        _note(folder, lambda kept: {"registered": {}})


def version_of(folder: Path, uri: str) -> str | None:
    """Return which version the folder's model is in the store's registry."""
    version = _read(folder).get("registered", {}).get(_store(uri))
    return None if version is None else str(version)


def _note(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with _writing:
        kept = _read(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text_durably(folder / FILE, json.dumps({**kept, **change(kept)}, indent=2) + "\n")


def _own_runs(folder: Path) -> dict[str, str]:
    """Return store -> run. A copy next to its original has no runs yet; a folder that was moved keeps its runs."""
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
    """Return a unique name of a store, independent of the working folder and without the password in its address."""
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).resolve()}"
    return str(without_secrets(uri)).rstrip("/")
