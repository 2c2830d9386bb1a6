"""Sends run folders to their store again: a training run, a pipeline with its stages, or a folder of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlhf_lightning.commands.lineage import TrainingRun, read_run
from rlhf_lightning.commands.mlflow_runs import (
    clear_behind,
    keep_run,
    keep_version,
    key_of,
    live_run,
    log_missing,
    log_parameters,
    version_of,
)
from rlhf_lightning.commands.run_folder import read_json_lines
from rlhf_lightning.commands.tracking import (
    add_version,
    artifact_location,
    files_of,
    flat_parameters,
    log_summary,
    uses_mlflow,
)
from rlhf_lightning.errors import blaming

_DEPTH = 3  # folders below the one that is named


@dataclass(frozen=True)
class PipelineFolder:
    """A pipeline's folder, its config, and the content of its summary.json (empty before its end)."""

    folder: Path
    config: dict[str, Any]
    summary: dict[str, Any]

    @property
    def stages(self) -> list[Path]:
        """The folders of the stages that have begun."""
        return [
            folder for name in self.config["stages"] if (folder := self.folder / name).is_dir() and read_run(folder)
        ]


def read_pipeline(path: str | Path) -> PipelineFolder | None:
    """The pipeline whose folder this is; None for any other."""
    folder = Path(path)
    if not (folder / "config.yaml").is_file():
        return None
    with blaming(f"{folder / 'config.yaml'} cannot be read"):
        config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    if not isinstance(config, dict) or not isinstance(config.get("stages"), dict):
        return None
    file = folder / "summary.json"
    with blaming(f"{file} cannot be read"):
        return PipelineFolder(folder, config, json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {})


def runs_below(path: str | Path) -> list[TrainingRun | PipelineFolder]:
    """The run or pipeline of a folder, or those below it, of which each was tracked by MLflow."""
    here = read_run(path) or read_pipeline(path)
    if here is not None:
        return [here]
    files = [file for depth in range(1, _DEPTH + 1) for file in sorted(Path(path).glob("*/" * depth + "config.yaml"))]
    found: list[TrainingRun | PipelineFolder] = []
    for folder in (file.parent for file in files):
        below_pipeline = any(isinstance(each, PipelineFolder) and each.folder in folder.parents for each in found)
        each = None if below_pipeline else read_run(folder) or read_pipeline(folder)
        if each is not None and uses_mlflow(each.config):
            found.append(each)
    return found


def send_again(run: TrainingRun | PipelineFolder, client: Any, uri: str) -> int:
    """Send what the store lacks of a run, or of a pipeline and its stages; returns how many values of metrics."""
    if isinstance(run, TrainingRun):
        return send_run(run.folder, client, uri)
    run_id = _find_or_make(run.folder, client, uri, run.config, str(run.config.get("name")), {})
    log_parameters(client, run_id, flat_parameters(run.config))
    log_summary(client, run_id, run.summary)
    for _, _, attach in files_of(run.folder):
        attach(client, run_id)
    points = sum(send_run(folder, client, uri, run_id) for folder in run.stages)
    if run.summary:
        client.set_terminated(run_id)
    clear_behind(run.folder, uri)
    return points


def send_run(folder: Path, client: Any, uri: str, parent_id: str | None = None) -> int:
    """Send what the store lacks of a training run; returns how many values of metrics that was.

    Args:
        folder: of the run.
        client: of the store.
        uri: of the store.
        parent_id: the pipeline's run in the store.
    """
    run = read_run(folder)
    assert run is not None, "looked at before"
    section = run.config.get("logger") or {}
    tags = {} if parent_id is None else {"mlflow.parentRunId": parent_id}
    run_id = _find_or_make(
        folder, client, uri, run.config, str(section.get("run_name") or run.config.get("name")), tags
    )
    log_parameters(client, run_id, flat_parameters(run.config))
    prefix = f"{section['prefix']}-" if section.get("prefix") else ""
    points = log_missing(client, run_id, read_json_lines(folder / "metrics.jsonl"), prefix, sender(client, run_id))
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
    """What sends points to a run. What the store refuses is left out."""
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


def _find_or_make(
    folder: Path, client: Any, uri: str, config: Mapping[str, Any], name: str, tags: Mapping[str, str]
) -> str:
    """The run's id in the store: the folder's own, or a new one."""
    from rlhf_lightning.callbacks.mlflow_store import NewRun

    former = live_run(folder, client, uri)
    if former is not None:
        for key, value in tags.items():
            client.set_tag(former, key, value)
        return former
    section = config.get("logger") or {}
    experiment = str(section.get("experiment_name", "rlhf-lightning"))
    own = {**(section.get("tags") or {}), "run_dir": str(folder), **tags}
    new = NewRun(experiment, name, own, section.get("artifact_location") or artifact_location(uri))
    if (lost := key_of(folder, uri)) is not None:
        new.key, new.attempts = lost, 1  # an attempt whose answer was lost may have made it
    made = new.make(client)
    keep_run(folder, uri, made)
    return made
