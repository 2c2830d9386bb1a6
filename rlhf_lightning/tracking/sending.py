"""Resending run folders to their store: a training run, a pipeline with its stages, or a folder of runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.runs.command_words import GivenCommand
from rlhf_lightning.runs.run import Run, read_any, read_run
from rlhf_lightning.tracking.contents import add_version, files_of, flat_parameters, log_rounds, log_summary
from rlhf_lightning.tracking.inputs import log_inputs
from rlhf_lightning.tracking.mlflow_runs import (
    clear_behind,
    keep_run,
    keep_version,
    key_of,
    live_run,
    log_missing,
    log_parameters,
    version_of,
)
from rlhf_lightning.tracking.notes import pipeline_note, put_note, run_note
from rlhf_lightning.tracking.store import artifact_location, uses_mlflow

_DEPTH = 3  # levels of folders below the given one


def runs_below(path: str | Path) -> list[Run]:
    """Return the run or pipeline of a folder, or those below it, each of them tracked by MLflow."""
    here = read_any(path)
    if here is not None:
        return [here]
    files = [file for depth in range(1, _DEPTH + 1) for file in sorted(Path(path).glob("*/" * depth + "config.yaml"))]
    found: list[Run] = []
    for folder in (file.parent for file in files):
        below_pipeline = any("stages" in each.config and each.folder in folder.parents for each in found)
        each = None if below_pipeline else read_any(folder)
        if each is not None and uses_mlflow(each.config):
            found.append(each)
    return found


def send_again(run: Run, client: Any, uri: str) -> int:
    """Send what the store lacks of a run, or of a pipeline and its stages; return the number of metric values sent."""
    if "stages" not in run.config:
        return _send(run, client, uri)
    run_id = _find_or_make(run, client, uri, run.name, {})
    log_parameters(client, run_id, flat_parameters(run.config))
    log_summary(client, run_id, run.summary)
    put_note(client, run_id, pipeline_note(run, GivenCommand(), run.summary))
    log_rounds(client, run_id, run.folder)
    for _, _, attach in files_of(run.folder):
        attach(client, run_id)
    points = sum(_send(stage, client, uri, run_id) for stage in run.stages)
    if run.summary:
        client.set_terminated(run_id)
    clear_behind(run.folder, uri)
    return points


def send_run(folder: Path, client: Any, uri: str, parent_id: str | None = None) -> int:
    """Send what the store lacks of a training run; return the number of metric values sent.

    Args:
        folder: the run's folder.
        client: MLflow's client of the store.
        uri: the store's address.
        parent_id: the pipeline's run in the store.
    """
    run = read_run(folder)
    assert run is not None, "looked at before"
    return _send(run, client, uri, parent_id)


def _send(run: Run, client: Any, uri: str, parent_id: str | None = None) -> int:
    section, folder = run.config.get("logger") or {}, run.folder
    tags = {} if parent_id is None else {"mlflow.parentRunId": parent_id}
    run_id = _find_or_make(run, client, uri, str(section.get("run_name") or run.name), tags)
    log_parameters(client, run_id, flat_parameters(run.config))
    put_note(client, run_id, run_note(run, GivenCommand()))
    log_inputs(client, run_id, run.config, run.summary)
    prefix = f"{section['prefix']}-" if section.get("prefix") else ""
    points = log_missing(client, run_id, run.metrics(), prefix, sender(client, run_id))
    if (folder / "samples.jsonl").is_file() and not (folder / "samples.jsonl").is_symlink():
        from rlhf_lightning.callbacks.sample_table import put_table

        put_table(client, run_id, folder / "samples.jsonl")
    for _, _, attach in files_of(folder):
        attach(client, run_id)
    if run.summary:
        if run.config.get("register") and version_of(folder, uri) is None:
            keep_version(folder, uri, add_version(client, run_id, str(run.config["register"])))
        client.set_terminated(run_id)
    clear_behind(folder, uri)
    return points


def sender(client: Any, run_id: str) -> Any:
    """Return a function that sends points to a run, leaving out what the store refuses."""
    from mlflow.entities import Metric

    from rlhf_lightning.callbacks.tracker import Point, is_refusal

    def send(points: list[Point]) -> None:
        try:
            client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value, now, step in points])
        except Exception as error:
            if not is_refusal(error) or len(points) == 0:
                raise
            if len(points) > 1:
                send(points[: len(points) // 2])
                send(points[len(points) // 2 :])

    return send


def _find_or_make(run: Run, client: Any, uri: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the run's id in the store: the folder's own, or a new one."""
    from rlhf_lightning.callbacks.mlflow_store import NewRun

    former = live_run(run.folder, client, uri)
    if former is not None:
        for key, value in tags.items():
            client.set_tag(former, key, value)
        return former
    section = run.config.get("logger") or {}
    experiment = str(section.get("experiment_name", "rlhf-lightning"))
    own = {**(section.get("tags") or {}), "run_dir": str(run.folder), **tags}
    new = NewRun(experiment, name, own, section.get("artifact_location") or artifact_location(uri))
    if (lost := key_of(run.folder, uri)) is not None:
        new.key, new.attempts = lost, 1  # an attempt whose answer was lost may have created it
    made = new.make(client)
    keep_run(run.folder, uri, made)
    return made
