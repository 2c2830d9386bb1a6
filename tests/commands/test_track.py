"""What a store has missed is sent later, and nothing twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rlhf_lightning.callbacks import SteadyMLFlowLogger
from rlhf_lightning.callbacks.mlflow_store import NewRun, connect
from rlhf_lightning.commands import track
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.folder_lock import FolderLock
from rlhf_lightning.tracking.mlflow_runs import FILE, mark_behind
from tests.commands.runs import write_run


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an empty store, which takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    connect(f"sqlite:///{folder}/mlflow.db")
    return folder / "mlflow.db"


def store() -> str:
    """Return the address of the working folder's store: a full one, because MLflow caches connections by address."""
    return f"sqlite:///{Path.cwd()}/mlflow.db"


@pytest.fixture
def run(empty_folder: Path, tables: Path) -> Path:
    shutil.copy(tables, "mlflow.db")
    logger = {"_target_": "rlhf_lightning.callbacks.SteadyMLFlowLogger", "tracking_uri": store()}
    folder = write_run(Path("run"), logger=logger)
    rows = [{"step": i, "epoch": 0, "train/loss": i / 10} for i in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mark_behind(folder, store())
    return folder


def test_a_run_that_its_store_has_never_seen_is_sent_whole_and_then_not_again(run, capsys):
    config = compose_config("track", ["run=run"])
    track.track(config)
    run_id = next(iter(json.loads((run / FILE).read_text())["runs"].values()))
    client = MlflowClient(store())
    history = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert json.loads((run / FILE).read_text())["behind"] == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "epoch": 0, "train/loss": 0.5}) + "\n")
    track.track(config)
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert "sent: 2 values" in capsys.readouterr().out  # the loss and the epoch of the new row


def test_a_pipeline_is_sent_with_its_stages_under_it(run: Path) -> None:
    pipeline = Path("pipe")
    logger = {"_target_": "rlhf_lightning.callbacks.SteadyMLFlowLogger", "tracking_uri": store()}
    for name in ("sft", "ppo"):
        shutil.copytree(run, pipeline / name)
        write_run(pipeline / name, logger=logger)
    (pipeline / "sft" / FILE).unlink()
    (pipeline / "config.yaml").write_text(
        json.dumps({"name": "pipe", "logger": logger, "stages": {"sft": {}, "ppo": {}}})
    )
    (pipeline / "summary.json").write_text('{"sft.loss": 0.5, "ppo.kl": null}')
    track.track(compose_config("track", ["run=pipe"]))
    track.track(compose_config("track", ["run=pipe"]))
    client = MlflowClient(store())
    found = client.search_runs([client.get_experiment_by_name("rlhf-lightning").experiment_id])
    by_name = {each.info.run_name: each for each in found}
    assert sorted(by_name) == ["pipe", "ppo", "sft"] and len(found) == 3
    assert {each.info.status for each in found} == {"FINISHED"}
    assert by_name["pipe"].data.metrics == {"sft.loss": 0.5}
    for name in ("sft", "ppo"):
        assert by_name[name].data.tags["mlflow.parentRunId"] == by_name["pipe"].info.run_id
        assert [point.step for point in client.get_metric_history(by_name[name].info.run_id, "train/loss")] == [
            1,
            2,
            3,
            4,
        ]


def test_a_model_that_was_to_be_registered_is_once(run: Path) -> None:
    logger = {"_target_": "rlhf_lightning.callbacks.SteadyMLFlowLogger", "tracking_uri": store()}
    write_run(run, logger=logger, register="mine")
    (run / "model").mkdir()
    (run / "model/config.json").write_text("{}")
    for _ in range(2):
        track.track(compose_config("track", ["run=run"]))
    client = MlflowClient(store())
    (version,) = client.search_model_versions("name='mine'")
    assert version.source.endswith("/artifacts/model")
    assert [file.path for file in client.list_artifacts(version.run_id, "model")] == [
        "model/MLmodel",
        "model/config.json",
    ]


def test_a_plain_logger_sends_all_by_its_end_and_names_are_those_of_mlflow(run: Path) -> None:
    logger = SteadyMLFlowLogger("mine", tracking_uri=store(), prefix="a", run_name="plain")
    for step in range(3):
        logger.log_metrics({"reward/my(fn)": step / 2, "text": "left out"}, step)  # type: ignore[dict-item]
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    client = MlflowClient(store())
    (found,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    history = client.get_metric_history(found.info.run_id, "a-reward/my_fn_")
    assert [(point.step, point.value) for point in history] == [(0, 0.0), (1, 0.5), (2, 1.0)]
    assert (found.info.status, found.data.params, found.info.run_name) == ("FINISHED", {"lr": "0.1"}, "plain")
    assert logger.version == found.info.run_id


def test_all_runs_below_a_folder_are_sent(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(2):
        shutil.copytree(run, Path("sweep") / str(number))
        (Path("sweep") / str(number) / FILE).unlink()
    write_run(Path("sweep/untracked"))
    track.track(compose_config("track", ["run=sweep"]))
    out = capsys.readouterr().out
    assert "8 values of sweep/0" in out and "8 values of sweep/1" in out and "untracked" not in out


def test_a_run_that_goes_on_is_left_alone(run: Path) -> None:
    with FolderLock(run) as lock:
        lock.take()
        with pytest.raises(UserError, match="another run is in progress"):
            track.track(compose_config("track", ["run=run"]))


def test_a_run_that_an_unanswered_attempt_has_made_is_found_again(run: Path) -> None:
    client = connect(store())
    lost = NewRun("rlhf-lightning", "run", {})
    made = lost.make(client)
    mark_behind(run, store(), lost.key)
    track.track(compose_config("track", ["run=run"]))
    assert list(json.loads((run / FILE).read_text())["runs"].values()) == [made]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run=nowhere"], r"^run: nowhere does not exist"),
        (["run=run", "tracking_uri=gopher://x"], r'^logger.tracking_uri: found "gopher://x"'),
        (["run=run", "tracking_uri=sqlite:///run/config.yaml"], r"is not an SQLite database"),
        (["run=run", "tracking_uri=sqlite:///run"], r"is a folder"),
    ],
)
def test_wrong_input_is_one_line(words, line, run):
    with pytest.raises(UserError, match=line):
        track.track(compose_config("track", words))


def test_a_password_has_to_be_given_again(empty_folder):
    logger = {"_target_": "x.MLFlowLogger", "tracking_uri": "http://***@host"}
    write_run(Path("run"), logger=logger)
    with pytest.raises(UserError, match="keeps no password"):
        track.track(compose_config("track", ["run=run"]))
