"""Faults of a tracking store: the run completes, metrics.jsonl is complete, and what was not sent is sent later."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from forked_command import in_a_fork
from kill_resume import end_of

from fault_catalogue import Fault, Outcome
from fault_catalogue.mlflow_server import Server
from fault_catalogue.runs import FAMILIES, Running, Undisturbed, pausing, undisturbed, write_folder

SQLITE = "sqlite:///mlflow.db"
LOGGER = [f"logger.tracking_uri={SQLITE}"]
PAUSES = {"sft": (4, 8), "ppo": (4, 6)}  # steps after which a fault begins and ends
QUICK = {("sft", "500", False, True)}
LONGEST = 60.0  # seconds that a fault may add to a run


def points_in_store(folder: Path, uri: str) -> tuple[Counter[tuple[str, int]], list[str]]:
    """Return how often the store has each value (metric, step) of a folder's run, and the states of all its runs.

    A separate process reads the store.
    """

    def read() -> None:
        from mlflow import MlflowClient

        client = MlflowClient(uri)
        (run_id,) = json.loads((folder / "mlflow.json").read_text())["runs"].values()
        names = client.get_run(run_id).data.metrics
        found = [(name, point.step) for name in names for point in client.get_metric_history(run_id, name)]
        runs = client.search_runs([client.get_run(run_id).info.experiment_id])
        (folder / "points.json").write_text(json.dumps([found, [run.info.status for run in runs]]))

    in_a_fork(read)
    found, states = json.loads((folder / "points.json").read_text())
    return Counter((name, step) for name, step in found), states


def points_in_file(folder: Path) -> set[tuple[str, int]]:
    """Return the values in metrics.jsonl."""
    return {
        (name, row["step"])
        for row in (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
        for name, value in row.items()
        if name != "step" and value is not None
    }


def outcome(folder: Path, run: Running, whole: Undisturbed, uri: str, database: Path, runs: int = 1) -> Outcome:
    """Send what is missing with rlhf-track, and compare the run with the undisturbed one and its store.

    Args:
        folder: the working folder; the run is in `run`.
        run: the training command, which has ended.
        whole: the undisturbed run.
        uri: the store's address.
        database: the store's actual file.
        runs: this many must exist.
    """
    said = [line for line in run.err if line not in whole.lines]
    end = end_of(folder / "run")
    track = Running("track", ["run=run", f"tracking_uri={uri}"], folder)
    code = track.wait()
    store, states = points_in_store(folder / "run", f"sqlite:///{database}")
    wanted = points_in_file(folder / "run")
    missing = [point for point in wanted if store[point] == 0]
    twice = [point for point, times in store.items() if times > 1]
    everything = "\n".join([run.out, track.out, *run.err, *track.err, (folder / "run/config.yaml").read_text()])
    faults: dict[str, Any] = {
        f"exit code {run.code}": run.code != 0,
        f"{len(missing)} points missing after rlhf-track": missing,
        f"{len(twice)} points twice": twice,
        f"{len(said)} lines": len(said) > 1,
        "no line says how to send it later": said and "rlhf-track run=run" not in said[0],
        f"runs in the store: {states}": set(states) != {"FINISHED"} or len(states) != runs,
        f"rlhf-track ended with {code}: {track.err}": code != 0,
        "too slow": run.seconds - whole.seconds > LONGEST,
        "the end differs": end != whole.end,
        "a password is shown": "hunter2" in everything,
    }
    wrong = [fault for fault, is_there in faults.items() if is_there]
    lost = len(whole.end["metrics.jsonl"]) - len(end["metrics.jsonl"]) + len(missing)
    later = re.search(r"did not receive (.*?)(?: \(|; )", "\n".join([run.out, *run.err]))
    note = f"sent later: {later[1]}" if later else "all sent by its end"
    return Outcome(lost, end == whole.end, run.seconds - whole.seconds, len(said), not wrong, "; ".join(wrong) or note)


def empty_store(folder: Path) -> None:
    """Make an SQLite store with MLflow's tables, which are created once."""
    made = folder.parent / "empty.db"

    def make() -> None:
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)

    if not made.exists():
        in_a_fork(make)
    shutil.copy(made, folder / "mlflow.db")


@contextlib.contextmanager
def lock(database: Path, seconds: float) -> Iterator[None]:
    """Let another process hold an SQLite file's lock for this long, or until the block ends."""
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
    """Let another process hold the store's lock for a while, from a step on or from the start."""
    whole = undisturbed(folder.parent, family, LOGGER, empty_store)
    write_folder(folder)
    empty_store(folder)
    with contextlib.ExitStack() as held:
        if at_start:
            held.enter_context(lock(folder / "mlflow.db", seconds))
        run = Running("train", [*FAMILIES[family], *LOGGER, *pausing(4)], folder)
        run.pause(4, lambda: None if at_start else held.enter_context(lock(folder / "mlflow.db", seconds)))
        run.wait()
    return outcome(folder, run, whole, SQLITE, folder / "mlflow.db")


def answered_badly(folder: Path, family: str, mode: str, at_start: bool = False, back: bool = False) -> Outcome:
    """Let a server answer badly from its start or from a step on, to the end of the run or to a later step.

    A `mode` of `dead` kills it. It works again when rlhf-track is called.
    """
    whole = undisturbed(folder.parent, family, LOGGER, empty_store)
    write_folder(folder)
    empty_store(folder)
    server = Server(folder)
    first, second = PAUSES[family]

    def spoil() -> None:
        if mode == "dead":
            server.kill()
        else:
            server.answer(mode)

    try:
        if not (at_start and mode == "dead"):
            server.start()
        if at_start:
            spoil()
        words = [*FAMILIES[family], f"logger.tracking_uri={server.uri}", *pausing(first, second)]
        run = Running("train", words, folder)
        run.pause(first, (lambda: None) if at_start else spoil)
        run.pause(second, server.mend if back else lambda: None)
        run.wait()
        server.mend()
        return outcome(folder, run, whole, server.uri, folder / "mlflow.db")
    finally:
        server.kill()


def refused_at_start(folder: Path, mode: str) -> Outcome:
    """Let a server refuse the login before anything is trained, which the user has to fix."""
    began = time.monotonic()
    write_folder(folder)
    empty_store(folder)
    server = Server(folder)
    try:
        server.start()
        server.answer(mode)
        run = Running("train", [*FAMILIES["sft"], f"logger.tracking_uri={server.uri}"], folder)
        code = run.wait()
    finally:
        server.kill()
    good = code == 2 and len(run.err) == 1 and "logger.tracking_uri" in run.err[0] and "hunter2" not in run.err[0]
    note = "exit code 2, which names logger.tracking_uri" if good else f"exit code {code}: {run.err}"
    return Outcome(0, None, time.monotonic() - began, len(run.err), good and not (folder / "run").exists(), note)


def two_first_runs(folder: Path) -> Outcome:
    """Let two runs create one SQLite store at the same moment."""
    whole = undisturbed(folder.parent, "sft", LOGGER, empty_store)
    write_folder(folder)
    words = [*FAMILIES["sft"], *LOGGER, "run_dir=other"]
    first = Running("train", [*FAMILIES["sft"], *LOGGER], folder)
    second = Running("train", words, folder)
    code = second.wait()
    first.wait()
    both = outcome(folder, first, whole, SQLITE, folder / "mlflow.db", runs=2)
    store, _ = points_in_store(folder / "other", f"sqlite:///{folder}/mlflow.db")
    wanted = points_in_file(folder / "other")
    if code != 0 or set(store) != wanted or max(store.values()) > 1 or end_of(folder / "other") != whole.end:
        both.good, both.note = False, f"the second one: exit code {code}, {len(store)} of {len(wanted)} points"
    return both


def no_room(folder: Path, family: str) -> Outcome:
    """Keep the store's file from growing, from the start; the run's other files are smaller."""
    whole = undisturbed(folder.parent, family, LOGGER, empty_store)
    write_folder(folder)
    empty_store(folder)
    limit = (folder / "mlflow.db").stat().st_size

    def prepare(folder: Path) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    run = Running("train", [*FAMILIES[family], *LOGGER], folder, prepare)
    run.wait()
    return outcome(folder, run, whole, SQLITE, folder / "mlflow.db")


def read_only(folder: Path, family: str) -> Outcome:
    """Make the store read-only: its database is opened for reading only."""
    whole = undisturbed(folder.parent, family, LOGGER, empty_store)
    write_folder(folder)
    empty_store(folder)
    uri = f"sqlite:///file:{folder}/mlflow.db?mode=ro&uri=true"
    run = Running("train", [*FAMILIES[family], f"logger.tracking_uri='{uri}'"], folder)
    run.wait()
    return outcome(folder, run, whole, SQLITE, folder / "mlflow.db")


def no_artifacts(folder: Path, family: str) -> Outcome:
    """Make the artifacts' place unwritable, while metrics are accepted."""
    whole = undisturbed(folder.parent, family, LOGGER, empty_store)
    write_folder(folder)
    empty_store(folder)
    (folder / "mlartifacts").touch()
    run = Running("train", [*FAMILIES[family], *LOGGER], folder)
    run.wait()
    (folder / "mlartifacts").unlink()
    made = outcome(folder, run, whole, SQLITE, folder / "mlflow.db")
    models = list((folder / "mlartifacts").rglob("model/*.safetensors"))
    if made.good and len(models) != 1:
        made.good, made.note = False, f"{len(models)} models in the artifact store after rlhf-track"
    return made


PIPELINE = """# @package _global_
stages:
  sft: {experiment: sft}
  ppo: {experiment: ppo, model_from: sft}
"""


def stages_untracked(folder: Path, back: bool) -> Outcome:
    """Kill a pipeline's server from the start, to the end or to its second stage; one command sends all later."""
    write_folder(folder)
    empty_store(folder)
    (folder / "conf/pipeline").mkdir(parents=True)
    (folder / "conf/pipeline/two.yaml").write_text(PIPELINE)
    words = ["--config-dir", "conf", "pipeline=two", "run_dir=pipe", "name=pipe"]
    for family, own in ((name, FAMILIES[name]) for name in PAUSES):
        kept = [word for word in own if not word.startswith(("experiment=", "run_dir="))]
        words += [f"stages.{family}.{word}" for word in kept if family == "sft" or not word.startswith("model.path")]
    server = Server(folder)
    began = time.monotonic()
    try:
        run = Running("pipeline", [*words, f"logger.tracking_uri={server.uri}"], folder)
        run.wait_until(lambda: (folder / "pipe/sft/summary.json").exists())
        if back:
            server.start()
        run.wait()
        server.mend()
        track = Running("track", ["run=pipe", f"tracking_uri={server.uri}"], folder)
        track.wait()
    finally:
        server.kill()
    wrong = [] if run.code == track.code == 0 else [f"exit codes {run.code} and {track.code}: {run.err} {track.err}"]
    lost = 0
    for stage in ("sft", "ppo") if not wrong else ():
        store, states = points_in_store(folder / "pipe" / stage, f"sqlite:///{folder}/mlflow.db")
        missing = [point for point in points_in_file(folder / "pipe" / stage) if store[point] == 0]
        lost += len(missing)
        if missing or max(store.values()) > 1 or states != ["FINISHED"] * 3:
            wrong.append(f"{stage}: {len(missing)} points missing, {max(store.values())} times, runs {states}")
    if len(run.err) != 1 or "rlhf-track run=pipe" not in run.err[0] or "hunter2" in run.out + run.err[0]:
        wrong.append(f"{len(run.err)} lines: {run.err}")
    seconds, note = time.monotonic() - began, "its stages and itself; the seconds cover all"
    return Outcome(lost, None, seconds, len(run.err), not wrong, "; ".join(wrong) or note)


BADLY = ("dead", "500", "slowly", "never", "HTML", "another JSON", "a JSON list", "401", "403", "429")


def title(family: str, mode: str, at_start: bool, back: bool) -> str:
    """Return the table's name of a server fault."""
    what = {"dead": "is dead", "slowly": "answers after 5 s", "never": "never answers"}.get(
        mode, f"answers with {mode}"
    )
    when = "from the start" if at_start else "from a step on, until a later one" if back else "from a step on"
    return f"tracking: {family}, the server {what} {when}"


FAULTS = [
    *(
        Fault(
            f"tracking: {family}, SQLite store locked for {seconds} s {'at the start' if at_start else 'mid-run'}",
            True,
            partial(locked, family=family, seconds=seconds, at_start=at_start),
        )
        for family in PAUSES
        for seconds in (20, 100)
        for at_start in (False, True)
    ),
    *(
        Fault(
            title(family, mode, at_start, back),
            (family, mode, at_start, back) not in QUICK,
            partial(answered_badly, family=family, mode=mode, at_start=at_start, back=back),
        )
        for family in PAUSES
        for mode in (*BADLY, "500 for artifacts")
        for at_start, back in ((True, False), (False, False), (False, True))
        if not (at_start and mode in ("401", "403"))
        and (family == "sft" or (mode in ("dead", "500", "slowly", "never") and not at_start))
    ),
    *(
        Fault(f"tracking: the server answers with {mode} at the start", True, partial(refused_at_start, mode=mode))
        for mode in ("401", "403")
    ),
    *(
        Fault(
            f"tracking: a pipeline's server is dead from the start{', until its second stage' if back else ''}",
            True,
            partial(stages_untracked, back=back),
        )
        for back in (False, True)
    ),
    Fault("tracking: two first runs make one SQLite store", True, two_first_runs),
    *(
        Fault(f"tracking: {family}, {what}", True, partial(make, family=family))
        for family in PAUSES
        for what, make in (
            ("the store's file cannot grow", no_room),
            ("the store is read-only", read_only),
            ("the SQLite store's artifacts cannot be written", no_artifacts),
        )
    ),
]
