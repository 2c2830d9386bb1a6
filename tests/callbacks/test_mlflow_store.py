"""Runs and stores are created once, even if answers are lost."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.callbacks.mlflow_store import NewRun, check_is_run, connect


class Client:
    """Creates runs; the answers to the first ones are lost."""

    def __init__(self, lost: int = 0) -> None:
        self.lost = lost
        self.runs: list[SimpleNamespace] = []
        self.deleted: list[str] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="7")

    def create_run(self, experiment: str, run_name: str | None, tags: dict[str, str]) -> Any:
        self.runs.append(SimpleNamespace(info=SimpleNamespace(run_id=f"run{len(self.runs)}"), tags=tags))
        if len(self.runs) <= self.lost:
            raise TimeoutError("no answer")
        return self.runs[-1]

    def search_runs(self, _: list[str], filter_string: str, **__: Any) -> list[Any]:
        return [run for run in self.runs if any(key in filter_string for key in run.tags.values())]

    def delete_run(self, run_id: str) -> None:
        self.deleted.append(run_id)


def test_a_run_whose_making_was_not_answered_is_not_made_twice() -> None:
    client, new = Client(lost=1), NewRun("experiment", "run", {})
    with pytest.raises(TimeoutError):
        new.make(client)
    assert new.make(client) == "run0"
    assert len(client.runs) == 1


def test_a_run_that_was_made_while_the_next_attempt_looked_for_it_is_deleted() -> None:
    client, new = Client(), NewRun("experiment", "run", {})
    first = new.make(client)
    new.attempts = 2
    client.create_run("7", "run", dict(client.runs[0].tags))  # from an attempt believed lost
    new.keep_one(client, first)
    assert client.deleted == ["run1"]


def test_an_answer_that_is_not_mlflows_is_not_taken() -> None:
    client = Client()
    client.get_experiment_by_name = lambda name: SimpleNamespace(experiment_id="")  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="not MLflow's"):
        NewRun("experiment", "run", {}).make(client)
    with pytest.raises(RuntimeError, match="not MLflow's"):
        check_is_run(SimpleNamespace(info=SimpleNamespace(run_id="")), "run0")


def _connect(uri: str) -> None:
    connect(uri).search_experiments(max_results=1)


@pytest.mark.slow
def test_processes_that_make_a_store_at_once_all_get_a_whole_one(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_connect, args=(uri,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
