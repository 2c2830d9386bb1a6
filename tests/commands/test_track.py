"""What a store has missed is sent later, and nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rlhf_lightning.commands import track
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.mlflow_runs import FILE, mark_behind
from rlhf_lightning.errors import UserError
from tests.commands.runs import write_run


@pytest.fixture
def run(empty_folder: Path) -> Path:
    logger = {"_target_": "rlhf_lightning.callbacks.SteadyMLFlowLogger", "tracking_uri": "sqlite:///mlflow.db"}
    folder = write_run(Path("run"), logger=logger)
    rows = [{"step": i, "epoch": 0, "train/loss": i / 10} for i in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mark_behind(folder, "sqlite:///mlflow.db")
    return folder


def test_a_run_that_its_store_has_never_seen_is_sent_whole_and_then_not_again(run, capsys):
    config = compose_config("track", ["run=run"])
    track.track(config)
    run_id = next(iter(json.loads((run / FILE).read_text())["runs"].values()))
    client = MlflowClient("sqlite:///mlflow.db")
    history = client.get_metric_history(run_id, "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert json.loads((run / FILE).read_text())["behind"] == []
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "epoch": 0, "train/loss": 0.5}) + "\n")
    track.track(config)
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5]
    assert "sent: 2 values" in capsys.readouterr().out  # the loss and the epoch of the new row


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
