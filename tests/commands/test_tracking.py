from __future__ import annotations

import socket
import time

import pytest

from rlhf_lightning.commands.tracking import (
    PipelineRun,
    artifact_location,
    check_tracking,
    flat_parameters,
    metric_name,
    ui_command,
    uses_mlflow,
)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_dead_server_is_an_error_within_seconds():
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"^logger.tracking_uri: no answer from http://127.0.0.1:\d+ .*logger=none"):
        check_tracking(f"http://127.0.0.1:{closed_port()}")
    assert time.monotonic() - started < 5


def test_a_server_that_accepts_and_never_answers_is_an_error_within_seconds():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        started = time.monotonic()
        with pytest.raises(ValueError, match="no answer"):
            check_tracking(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - started < 6


def test_the_folder_of_a_new_sqlite_store_is_made(empty_folder):
    check_tracking("sqlite:///deep/down/mlflow.db")
    assert (empty_folder / "deep" / "down").is_dir()


def test_parameters_are_flat_and_cut_to_what_mlflow_keeps():
    flat = flat_parameters({"a": {"b": "x" * 300, "c": None}, "requires": {"outputs/demo/sft": "cmd"}, "empty": {}})
    assert len(flat["a.b"]) == 250
    assert flat["a.c"] == "None"
    assert flat["requires.outputs/demo/sft"] == "cmd"
    assert flat["empty"] == "{}"


def test_artifacts_lie_beside_the_store_wherever_the_command_is_called(empty_folder):
    assert artifact_location("sqlite:///outputs/mlflow.db") == (empty_folder / "outputs" / "mlartifacts").as_uri()
    assert artifact_location("http://server:5000") is None


def test_names_that_mlflow_refuses_are_spelled_differently():
    assert metric_name("reward/my(fn)@2") == "reward/my_fn__2"
    assert metric_name("ppo.gold_win_rate_vs_sft") == "ppo.gold_win_rate_vs_sft"


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("sqlite:///outputs/mlflow.db", "mlflow ui --backend-store-uri sqlite:///outputs/mlflow.db"),
        ("http://server:5000", "open http://server:5000"),
    ],
)
def test_the_line_that_opens_the_store(uri, line):
    assert ui_command(uri) == line


def test_other_loggers_are_left_alone():
    assert not uses_mlflow({"logger": {"_target_": "my_package.MyLogger"}})
    assert not uses_mlflow({"logger": {}})
    assert not uses_mlflow({"logger": None})


def test_a_pipeline_run_holds_summary_config_and_files(empty_folder):
    report = empty_folder / "report.html"
    report.write_text("<p>")
    run = PipelineRun("sqlite:///mlflow.db", "experiment", "demo", empty_folder)
    run.finish({"ppo.kl": 3.0}, {"seed": 1, "stages": {"ppo": {"experiment": "ppo_demo"}}}, [report])
    stored = run.client.get_run(run.run_id)
    assert stored.data.metrics == {"ppo.kl": 3.0}
    assert stored.data.params == {"seed": "1", "stages.ppo.experiment": "ppo_demo"}
    assert stored.info.status == "FINISHED"
    assert [artifact.path for artifact in run.client.list_artifacts(run.run_id)] == ["report.html"]
