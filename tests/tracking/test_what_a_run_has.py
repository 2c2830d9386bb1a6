"""Inputs, model file and system metrics of runs in a real store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mlflow
import pandas
import pytest
import yaml
from mlflow import MlflowClient

from rlhf_lightning.callbacks import SteadyMLFlowLogger
from rlhf_lightning.callbacks.mlflow_store import NewRun, connect
from rlhf_lightning.runs.run import read_run
from rlhf_lightning.tracking.inputs import log_inputs
from rlhf_lightning.tracking.model_file import model_file, put_model_file
from tests.commands.runs import write_model, write_run


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def client(store: str) -> Any:
    return connect(store)


@pytest.fixture
def run_id(client: Any, tmp_path: Path) -> str:
    return NewRun("mine", "a run", {}, (tmp_path / "artifacts").as_uri()).make(client)


def test_an_experiment_is_one_of_training(client: Any, run_id: str) -> None:
    assert client.get_experiment_by_name("mine").tags["mlflow.experimentKind"] == "custom_model_development"


def test_data_are_inputs_once_with_the_hash_of_their_content(client: Any, run_id: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n')
    config = {"data": {"train": str(file), "val": "org/held_out"}}
    for _ in range(2):
        log_inputs(client, run_id, config, {"train_rows": 1})
    found = {each.dataset.name: each for each in client.get_run(run_id).inputs.dataset_inputs}
    assert sorted(found) == ["held_out", "prompts.jsonl"]
    train = found["prompts.jsonl"]
    assert json.loads(train.dataset.profile) == {"num_rows": 1}
    assert [(tag.key, tag.value) for tag in train.tags] == [("mlflow.data.context", "training")]
    before = train.dataset.digest
    file.write_text('{"prompt": "b"}\n')
    log_inputs(client, run_id, config)
    assert len({each.dataset.digest for each in client.get_run(run_id).inputs.dataset_inputs} - {before}) == 2


def test_rows_given_in_python_are_no_inputs(client: Any, run_id: str) -> None:
    log_inputs(client, run_id, {"data": {"train": [{"prompt": "a"}]}})
    assert client.get_run(run_id).inputs.dataset_inputs == []


@pytest.mark.parametrize(("algorithm", "scores"), [("PPOModule", False), ("RewardModule", True)])
def test_mlflow_loads_a_model_by_its_signature(
    client: Any, run_id: str, tmp_path: Path, algorithm: str, scores: bool
) -> None:
    folder = write_model(write_run(tmp_path / "run", algorithm=algorithm) / "model", classifier=scores)
    run = read_run(folder.parent)
    assert run is not None
    put_model_file(client, run_id, run)
    (folder / "MLmodel").write_text(model_file(run_id, run.is_reward_model))
    loaded = mlflow.pyfunc.load_model(str(folder))
    prompts = ["a b", "c d"]
    if scores:
        found = loaded.predict(pandas.DataFrame({"prompt": prompts, "response": ["e", "f g"]}))
        assert len(found) == 2 and all(isinstance(score, float) for score in found)
    else:
        rows, settings = pandas.DataFrame({"prompt": prompts}), {"max_new_tokens": 3, "seed": 1}
        found = loaded.predict(rows, params=settings)
        assert len(found) == 2 and all(isinstance(text, str) for text in found)
        assert found == loaded.predict(rows, params=settings)
    stored = Path(client.download_artifacts(run_id, "model/MLmodel", str(tmp_path)))
    inputs = json.loads(yaml.safe_load(stored.read_text())["signature"]["inputs"])
    assert [each["name"] for each in inputs] == (["prompt", "response"] if scores else ["prompt"])


def test_system_metrics_come_on_request(store: str) -> None:
    plain = SteadyMLFlowLogger("mine", store, run_name="plain")
    watched = SteadyMLFlowLogger("mine", store, run_name="watched", system_metrics=0.01)
    for logger in (plain, watched):
        logger.open()
    name, client = "system/cpu_utilization_percentage", MlflowClient(store)
    while name not in client.get_run(watched.run_id).data.metrics:
        watched.outbox.wait(1.0)
    for logger in (plain, watched):
        logger.finalize()
    assert not any(key.startswith("system/") for key in client.get_run(plain.run_id).data.metrics)
    documented = (Path(__file__).parents[2] / "docs/metrics.md").read_text(encoding="utf-8")
    logged = [key for key in client.get_run(watched.run_id).data.metrics if key.startswith("system/")]
    assert logged and not [key for key in logged if f"`{re.sub('gpu_[0-9]+', 'gpu_N', key)}`" not in documented]
    assert client.get_run(watched.run_id).info.status == "FINISHED"
