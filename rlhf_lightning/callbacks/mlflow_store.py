"""A client of an MLflow store. A new SQLite store is made whole or not at all, also by two runs at once."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_MLFLOW = "the answer is not MLflow's"
_KEY = "rlhf_lightning.key"  # the tag by which a run is found whose making was not answered


def connect(uri: str) -> Any:
    """An MLflow client. It calls the store, and waits for it: not for the thread that trains."""
    from mlflow import MlflowClient

    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:///file:"):  # the latter has options of its own
        _make_sqlite(Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    return MlflowClient(uri)


def _make_sqlite(file: Path) -> None:
    """Make the tables beside a new file's place, then link it there: whoever comes first wins, and a kill leaves none.

    MLflow itself makes them in place: a second process then finds some of the tables, and fails.
    """
    if file.exists() and file.stat().st_size:
        return
    from mlflow import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        new = Path(folder) / file.name
        MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
        if file.exists() and not file.stat().st_size:  # SQLite's own beginning, of a program that has made no table
            with contextlib.suppress(OSError):
                file.unlink()
        with contextlib.suppress(FileExistsError):
            os.link(new, file)


def find_experiment(client: Any, name: str, location: str | None) -> str:
    """The id of an experiment, which is made if there is none."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return _an_id(client.create_experiment(name, artifact_location=location))
        except MlflowException as error:  # another run was quicker, or the answer to an earlier attempt was lost
            found = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
    return _an_id(found.experiment_id)


class NewRun:
    """A run to make: once, even where the answer to an attempt is lost.

    Args:
        experiment_name: made if there is none.
        run_name: of the run.
        tags: of the run.
        location: of a new experiment's artifacts; None: the store has its own place.
    """

    def __init__(
        self, experiment_name: str, run_name: str | None, tags: Mapping[str, Any], location: str | None = None
    ) -> None:
        self.experiment_name, self.run_name, self.location = experiment_name, run_name, location
        self.tags = {name: str(value) for name, value in tags.items()}
        self.key = uuid.uuid4().hex
        self.attempts = 0

    def make(self, client: Any) -> str:
        """Return the id of the run, made now or by an earlier attempt."""
        from mlflow.tracking.context.registry import resolve_tags

        experiment = find_experiment(client, self.experiment_name, self.location)
        self.attempts += 1
        if self.attempts > 1 and (made := self._made(client, experiment)):
            return made[0]
        tags = resolve_tags({**self.tags, _KEY: self.key})
        return _an_id(client.create_run(experiment, run_name=self.run_name, tags=tags).info.run_id)

    def keep_one(self, client: Any, run_id: str) -> None:
        """Delete what attempts have made that were thought lost."""
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
    """Raise RuntimeError if an answer is about another run, or none: what answers is not MLflow."""
    if run.info.run_id != run_id:
        raise RuntimeError(NOT_MLFLOW)


def _an_id(text: Any) -> str:
    if not text:
        raise RuntimeError(NOT_MLFLOW)
    return str(text)
