"""rlhf-track: resend runs to an MLflow store that has missed a part of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.config.schema import Track
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError, is_own_slip
from rlhf_lightning.runs.folder_lock import FolderLock
from rlhf_lightning.runs.run import Run
from rlhf_lightning.secret_text import HIDDEN, shown
from rlhf_lightning.tracking.sending import runs_below, send_again
from rlhf_lightning.tracking.store import ui_command, uses_mlflow
from rlhf_lightning.tracking.store_check import check_tracking


def main() -> None:
    """Run rlhf-track."""
    run_hydra_command("rlhf-track", "track", track)


def check(config: Mapping[str, Any]) -> tuple[list[Run], list[str]]:
    """Return the runs, and the address of each run's store.

    Raises:
        UserError: one line about the first problem.
    """
    validate(config, Track)
    folder, uri = config["run"], config["tracking_uri"]
    if not Path(folder).is_dir():
        raise UserError(f"run: {folder} does not exist; give the folder of a training run or of a pipeline")
    runs = runs_below(folder)
    if not runs:
        raise UserError(
            f"run: {folder} is not the folder of a training run or a pipeline (no config.yaml), and contains none"
        )
    uris = []
    for run in runs:
        if uri is None and not uses_mlflow(run.config):
            raise UserError(f"tracking_uri: {run.folder} was not tracked by MLflow; give tracking_uri=...")
        uris.append(str(uri or run.config["logger"]["tracking_uri"]))
        if HIDDEN in uris[-1]:
            raise UserError(f"tracking_uri: the run keeps no password ({uris[-1]}); give tracking_uri=... with it")
        FolderLock(run.folder).check()
        for each in (run, *run.stages):
            each.metrics()  # before the store is asked
    return runs, uris


def track(config: dict[str, Any]) -> None:
    """Send what the store lacks, and say how much that was."""
    runs, uris = check(config)
    for run, uri in zip(runs, uris, strict=True):
        check_tracking(uri)
        from rlhf_lightning.callbacks.mlflow_store import connect

        with blaming_store(uri):
            points = send_again(run, connect(uri), uri)
        print(f"sent: {points} values of {run.folder}, its config and its model")
    for uri in dict.fromkeys(uris):
        print(ui_command(uri))


@contextmanager
def blaming_store(uri: str) -> Iterator[None]:
    """Turn a store's error, or its silence, into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_own_slip(error):
            raise
        from rlhf_lightning.callbacks.notice import Notice

        why = Notice(uri, clean=shown).why(error)
        raise UserError(
            f"tracking_uri: {shown(uri)} did not accept the run: {why}; try again when it answers"
        ) from error
