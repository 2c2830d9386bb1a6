"""Faults of a tracking store: the run completes, metrics.jsonl is the truth, and what was not sent is sent later."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from forked_command import in_a_fork
from kill_resume import end_of

from fault_catalogue import Fault, Outcome
from fault_catalogue.runs import FAMILIES, Running, Undisturbed, pausing, undisturbed, write_folder

LOGGER = ["logger.tracking_uri=sqlite:///mlflow.db"]
LONGEST = 45.0  # seconds that a fault may add to a run


def points_in_store(folder: Path, uri: str) -> Counter[tuple[str, int]]:
    """How often the store has each value (metric, step) of the run in a folder; read by a process of its own."""

    def read() -> None:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        (run_id,) = json.loads((folder / "mlflow.json").read_text())["runs"].values()
        names = client.get_run(run_id).data.metrics
        found = [(name, point.step) for name in names for point in client.get_metric_history(run_id, name)]
        (folder / "points.json").write_text(json.dumps(found))

    in_a_fork(read)
    return Counter((name, step) for name, step in json.loads((folder / "points.json").read_text()))


def points_in_file(folder: Path) -> set[tuple[str, int]]:
    """The values that metrics.jsonl has."""
    return {
        (name, row["step"])
        for row in (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        for name, value in row.items()
        if name != "step" and value is not None
    }


def outcome(folder: Path, run: Running, whole: Undisturbed, held: float, uri: str) -> Outcome:
    """Send what is missing with rlhf-track, and compare the run with the undisturbed one and its store."""
    said = [line for line in run.err if line not in whole.lines]
    end = end_of(folder / "run")
    track = Running("track", ["run=run", f"tracking_uri={uri}"], folder)
    code = track.wait()
    store, wanted = points_in_store(folder / "run", uri), points_in_file(folder / "run")
    missing = [point for point in wanted if store[point] == 0]
    twice = [point for point, times in store.items() if times > 1]
    faults = {
        f"exit code {run.code}": run.code != 0,
        f"{len(missing)} points missing after rlhf-track": missing,
        f"{len(twice)} points twice": twice,
        f"{len(said)} lines": len(said) > 1,
        f"rlhf-track ended with {code}: {track.err}": code != 0,
        "too slow": run.seconds - held - whole.seconds > LONGEST,
        "the end differs": end != whole.end,
    }
    wrong = [fault for fault, is_there in faults.items() if is_there]
    lost = len(whole.end["metrics.jsonl"]) - len(end["metrics.jsonl"]) + len(missing)
    note = "; ".join(wrong) or (said[0] if said else "all sent before its end")
    seconds = run.seconds - held - whole.seconds
    return Outcome(lost, end == whole.end, seconds, len(said), not wrong, note)


def empty_store(folder: Path) -> None:
    """An SQLite store with MLflow's tables; they are made once."""
    made = folder.parent / "empty.db"

    def make() -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)

    if not made.exists():
        in_a_fork(make)
    shutil.copy(made, folder / "mlflow.db")


@contextlib.contextmanager
def lock(database: Path, seconds: float) -> Iterator[None]:
    """Another process holds the lock of an SQLite file for so long, or until the block ends; it has it at its start."""
    began, end = (database.with_suffix(suffix) for suffix in (".held", ".end"))
    for file in (began, end):
        file.unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        began.touch()
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and not end.exists():
            time.sleep(0.02)
        connection.execute("ROLLBACK")
        os._exit(0)
    while not began.exists():
        time.sleep(0.01)
    try:
        yield
    finally:
        end.touch()
        os.waitpid(pid, 0)


def locked(folder: Path, family: str, seconds: float, at_start: bool) -> Outcome:
    """Another process holds the store's lock for a while, from a step on or from the start."""
    whole = undisturbed(folder.parent, family, LOGGER)
    write_folder(folder)
    empty_store(folder)
    with contextlib.ExitStack() as held:
        if at_start:
            held.enter_context(lock(folder / "mlflow.db", seconds))
        run = Running("train", [*FAMILIES[family], *LOGGER, *pausing(4)], folder)
        run.pause(4, lambda: None if at_start else held.enter_context(lock(folder / "mlflow.db", seconds)))
        run.wait()
    return outcome(folder, run, whole, 0.0, f"sqlite:///{folder}/mlflow.db")


FAULTS = [
    Fault(
        f"tracking: {family}, SQLite store locked for {seconds} s {'at the start' if at_start else 'in mid-run'}",
        (family, seconds, at_start) != ("sft", 20, False),
        partial(locked, family=family, seconds=seconds, at_start=at_start),
    )
    for family in FAMILIES
    for seconds in (20, 100)
    for at_start in (False, True)
]
