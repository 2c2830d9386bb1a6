from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.commands import train
from rlhf_lightning.commands.build import build
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.inputs import check_inputs, missing_locally
from rlhf_lightning.errors import UserError

TINY = [
    "+prepare.n_train_prompts=32",
    "+prepare.n_test_prompts=8",
    "+prepare.demonstrations_per_prompt=1",
    "+prepare.pairs_per_prompt=1",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
    "optimizer.lr=0.001",
    "trainer.log_every_n_steps=1",
    "callbacks.progress=null",
]


@pytest.mark.filterwarnings("ignore")
def test_a_run_leaves_config_checkpoint_model_summary_and_an_mlflow_run(empty_folder):
    config = compose_config("train", ["experiment=sft_demo", *TINY])
    train.check(config)
    result = train.run(config)

    folder = empty_folder / "outputs" / "demo" / "sft"
    for name in ("config.yaml", "checkpoints/last.ckpt", "metrics.jsonl", "model/config.json", "summary.json"):
        assert (folder / name).is_file(), name
    card = (folder / "model" / "README.md").read_text()
    assert "# sft_demo" in card and f"`val/loss` | {result.summary['val/loss']:.5g} |" in card
    rows = len(Path("outputs/demo/world/sft.jsonl").read_text().splitlines())
    assert result.summary["train_rows"] + result.summary["val_rows"] == rows
    assert f"| train | outputs/demo/world/sft.jsonl | {result.summary['train_rows']} |" in card
    assert json.loads((folder / "summary.json").read_text()) == result.summary
    assert result.summary["optimiser_steps"] == 1
    assert result.summary["cpu_seconds"] > 0

    client = MlflowClient("sqlite:///outputs/mlflow.db")
    experiment = client.get_experiment_by_name("rlhf-lightning")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["data.train"] == "outputs/demo/world/sft.jsonl"
    assert "train/loss" in run.data.metrics
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"config.yaml", "summary.json", "model"}


@pytest.mark.filterwarnings("ignore")
def test_a_registered_model_is_the_runs_folder_in_the_artifact_store_and_answers_like_it(empty_folder, capsys):
    overrides = ["experiment=sft_demo", *TINY, "register=my-model"]
    config = compose_config("train", overrides)
    train.check(config)
    for version in ("1", "2"):
        train.run(config)
        assert capsys.readouterr().out.splitlines()[-1] == f"registered: my-model, version {version}"
    client = MlflowClient("sqlite:///outputs/mlflow.db")
    registered = client.get_model_version("my-model", "2")
    runs = client.search_runs([client.get_experiment_by_name("rlhf-lightning").experiment_id])
    assert registered.run_id == runs[0].info.run_id  # the newest

    uri = "sqlite:///outputs/mlflow.db"
    downloaded = mlflow.artifacts.download_artifacts(
        "models:/my-model/2", dst_path=str(empty_folder / "down"), tracking_uri=uri, registry_uri=uri
    )
    answers = []
    for folder in (Path("outputs/demo/sft/model"), Path(downloaded)):
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer("how do i fix the lamp?", return_tensors="pt").input_ids
        answers.append(model.generate(prompt, max_new_tokens=16, do_sample=False).tolist())
    assert answers[0] == answers[1]
    assert (Path(downloaded) / "README.md").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=none", "register=x"], r"^register: MLflow keeps the registered models; choose logger=mlflow"),
        (["register=org/x"], r'^register: found "org/x"; must be a name without / or :'),
    ],
)
def test_what_cannot_be_registered_is_known_before_the_run(overrides, message):
    with pytest.raises(UserError, match=message):
        train.check(compose_config("train", ["experiment=sft_demo", *overrides]))


def test_only_a_reward_model_can_be_standardised():
    settings = ["experiment=ppo_demo", "reward.model=null", "reward.function=my.fn", "reward.standardize=true"]
    with pytest.raises(UserError, match=r"^reward\.standardize: only a reward model"):
        train.check(compose_config("train", settings))


def test_a_target_that_cannot_be_imported_names_its_key():
    with pytest.raises(UserError, match=r"^algorithm._target_: cannot import no_such_package.Module"):
        build({"_target_": "no_such_package.Module"}, "algorithm")


def test_wrong_input_inside_a_nested_section_is_not_wrapped():
    section = {"_target_": "builtins.dict", "kl": {"_target_": "rlhf_lightning.algorithms.KLPenalty", "kind": "x"}}
    with pytest.raises(UserError, match=r"^algorithm.kl.kind"):
        build(section, "algorithm")
    section["kl"] = {"_target_": "rlhf_lightning.algorithms.PretrainingMix", "coef": 1.0}
    with pytest.raises(UserError, match=r"^algorithm.ptx.data"):
        build(section, "algorithm")


def test_further_arguments_are_handed_over_untouched():
    marker = object()
    assert build({"_target_": "builtins.dict", "a": [1]}, "x", b=marker) == {"a": [1], "b": marker}


def test_a_partial_section_becomes_a_factory():
    factory = build({"_target_": "builtins.dict", "_partial_": True, "a": 1}, "x")
    assert factory(b=2) == {"a": 1, "b": 2}


def test_an_empty_section_is_nothing():
    assert build(None, "logger") is None
    assert build({}, "logger") is None


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ("gpt2", False),
        ("org/name", False),
        ("outputs/demo/sft", True),
        ("./here", True),
        ("/nowhere/at/all", True),
        ("rows.jsonl", True),
        ("existing/other", True),
        ("existing", False),
        ("org/name:test", False),
        ("org/name:configuration:test", False),
        ("rows.csv", True),
        ("org/rows.jsonl.gz", True),
        ("existing:test", False),
        ("existing/other:test", True),
        ("rows.jsonl:test", True),
    ],
)
def test_hub_names_are_told_from_paths_that_are_not_there(value, missing, empty_folder):
    (empty_folder / "existing").mkdir()
    assert missing_locally(value) is missing


def test_a_run_folder_without_a_model_is_named_with_the_command_to_run(empty_folder):
    (empty_folder / "outputs" / "demo" / "sft").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no model in outputs/demo/sft .* first run: rlhf-train experiment=sft_demo"):
        check_inputs(compose_config("train", ["experiment=dpo_demo"]))
