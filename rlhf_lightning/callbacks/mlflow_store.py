"""A client of an MLflow store. A new SQLite store is created completely or not at all, even by two runs at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_MLFLOW = "the answer is not MLflow's"
_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # pages of training runs, not of prompts and traces
_KEY = "rlhf_lightning.key"  # the tag that finds a run whose creation was not acknowledged


def connect(uri: str) -> Any:
    """Return an MLflow client. It calls the store and waits for it, so do not call it from the training thread."""
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:///file:"):  # the latter has its own options
        _make_sqlite(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    return MlflowClient(uri)


def _make_sqlite(file: Path) -> None:
    """Create the tables in a temporary file and link it into place: the first process wins, a kill leaves nothing.

    MLflow itself creates them in place: a second process then finds only some of the tables, and fails.
    """
    if file.exists() and file.stat().st_size:
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        new = Path(folder) / file.name
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        if file.exists() and not file.stat().st_size:  # left by SQLite when a program opened it and created no table
            with contextlib.suppress(OSError):
                file.unlink()
        with contextlib.suppress(FileExistsError):
            os.link(new, file)


def find_experiment(client: Any, name: str, location: str | None) -> str:
    """Return the id of an experiment, created if it does not exist."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return _an_id(client.create_experiment(name, artifact_location=location, tags=_TRAINING))
        except MlflowException as error:  # another run was faster, or the answer to an earlier attempt was lost
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    return _an_id(found.experiment_id)


class NewRun:
    """A run to create exactly once, even if the answer to an attempt is lost.

    Args:
        experiment_name: created if it does not exist.
        run_name: name of the run.
        tags: tags of the run.
        location: where a new experiment's artifacts go; None: the store's default.
    """

    def __init__(
        self, experiment_name: str, run_name: str | None, tags: Mapping[str, Any], location: str | None = None
    ) -> None:
        self.experiment_name, self.run_name, self.location = experiment_name, run_name, location
        self.tags = {name: str(value) for name, value in tags.items()}
        self.key = uuid.uuid4().hex
        self.attempts = 0

    def make(self, client: Any) -> str:
        """Return the id of the run, created now or by an earlier attempt."""
        from mlflow.tracking.context.registry import resolve_tags

        experiment = find_experiment(client, self.experiment_name, self.location)
        self.attempts += 1
        if self.attempts > 1 and (made := self._made(client, experiment)):
            return made[0]
        tags = resolve_tags({**self.tags, _KEY: self.key})
        return _an_id(client.create_run(experiment, run_name=self.run_name, tags=tags).info.run_id)

    def keep_one(self, client: Any, run_id: str) -> None:
        """Delete the duplicates that attempts believed lost have created."""
        if self.attempts > 1:
            experiment = find_experiment(client, self.experiment_name, self.location)
            for each in self._made(client, experiment):
                if each != run_id:
                    client.delete_run(each)

    def _made(self, client: Any, experiment: str) -> list[str]:
        found = client.search_runs(
            [experiment], f"tags.`{_KEY}` = '{self.key}'", order_by=["attributes.start_time ASC"]
        )
        return [str(run.info.run_id) for run in found]


def check_is_run(run: Any, run_id: str) -> None:
    """Raise RuntimeError if an answer is about another run, or none: whatever answers is not MLflow."""
    if run.info.run_id != run_id:
        raise RuntimeError(NOT_MLFLOW)


def _an_id(text: Any) -> str:
    if not text:
        raise RuntimeError(NOT_MLFLOW)
    return str(text)
