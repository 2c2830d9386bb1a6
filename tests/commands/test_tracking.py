from __future__ import annotations

import pytest

from rlhf_lightning.environment import typed
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.tracking.contents import flat_parameters
from rlhf_lightning.tracking.pipeline_tracking import PipelineTracking
from rlhf_lightning.tracking.store import artifact_location, ui_command, uses_mlflow


def test_parameters_are_flat_and_cut_to_what_mlflow_keeps():
    flat = flat_parameters({"a": {"b": "x" * 300, "c": None}, "requires": {"outputs/demo/sft": "cmd"}, "empty": {}})
    assert len(flat["a.b"]) == 250
    assert flat["a.c"] == "None"
    assert flat["requires.outputs/demo/sft"] == "cmd"
    assert flat["empty"] == "{}"


def test_artifacts_lie_beside_the_store_wherever_the_command_is_called(empty_folder):
    assert artifact_location("sqlite:///outputs/mlflow.db") == (empty_folder / "outputs" / "mlartifacts").as_uri()
    assert artifact_location("http://server:5000") is None


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("sqlite:///outputs/mlflow.db", f"{typed('mlflow')} ui --backend-store-uri sqlite:///outputs/mlflow.db"),
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
    logger = {"tracking_uri": "sqlite:///mlflow.db", "experiment_name": "experiment"}
    config = {"name": "demo", "logger": logger, "seed": 1, "stages": {"ppo": {"experiment": "ppo_demo"}}}
    run = PipelineTracking(Pipeline(config, empty_folder, []))
    run.open()
    run.finish({"ppo.kl": 3.0, "ppo.val": None}, [report])
    stored = run.client.get_run(run.run_id)
    assert stored.data.metrics == {"ppo.kl": 3.0}
    assert stored.data.params.items() >= {"seed": "1", "stages.ppo.experiment": "ppo_demo"}.items()
    assert stored.info.status == "FINISHED"
    assert [artifact.path for artifact in run.client.list_artifacts(run.run_id)] == ["report.html"]
