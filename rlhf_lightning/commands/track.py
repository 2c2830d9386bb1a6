"""rlhf-track: sends a run to its MLflow store again, where the store has missed a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.help import track_help
from rlhf_lightning.commands.lineage import TrainingRun, read_run
from rlhf_lightning.commands.redaction import HIDDEN, shown
from rlhf_lightning.commands.schema import Track
from rlhf_lightning.commands.tracking import check_tracking, send_again, ui_command, uses_mlflow
from rlhf_lightning.commands.validation import validate
from rlhf_lightning.errors import UserError, blaming


def main() -> None:
    """The entry point of rlhf-track."""
    run_hydra_command("rlhf-track", "track", track, track_help)


def check(config: Mapping[str, Any]) -> tuple[TrainingRun, str]:
    """The run and the address of its store.

    Raises:
        UserError: one line about the first thing that is wrong.
    """
    validate(config, Track)
    run = read_run(config["run"])
    if run is None:
        raise UserError(f"run: {config['run']} is not the folder of a training run (no config.yaml of rlhf-train)")
    uri = config["tracking_uri"]
    if uri is None and not uses_mlflow(run.config):
        raise UserError(f"tracking_uri: {config['run']} was not tracked by MLflow; give tracking_uri=...")
    uri = str(uri or run.config["logger"]["tracking_uri"])
    if HIDDEN in uri:
        raise UserError(f"tracking_uri: the run keeps no password ({uri}); give tracking_uri=... with it")
    return run, uri


def track(config: dict[str, Any]) -> None:
    """Send what the store lacks, and say how much that was."""
    run, uri = check(config)
    check_tracking(uri)
    with blaming(f"tracking_uri: {shown(uri)} does not take the run", "try again when it answers"):
        points = send_again(run, Path(run.folder), uri)
    print(f"sent: {points} values of {run.folder}, its config and its model")
    print(ui_command(uri))
