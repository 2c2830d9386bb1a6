from __future__ import annotations

import json

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.build import build
from rlhf_lightning.commands.checks import check_inputs, missing_locally
from rlhf_lightning.commands.composition import compose_config
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
    assert json.loads((folder / "summary.json").read_text()) == result.summary
    assert result.summary["optimiser_steps"] == 1

    from mlflow import MlflowClient

    client = MlflowClient("sqlite:///outputs/mlflow.db")
    experiment = client.get_experiment_by_name("rlhf-lightning")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.lr"] == "0.001"
    assert run.data.params["data.train"] == "outputs/demo/world/sft.jsonl"
    assert "train/loss" in run.data.metrics
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert artifacts >= {"config.yaml", "summary.json", "model"}


def test_a_target_that_cannot_be_imported_names_its_key():
    with pytest.raises(UserError, match=r"^algorithm._target_: cannot import no_such_package.Module"):
        build({"_target_": "no_such_package.Module"}, "algorithm")


def test_wrong_input_inside_a_nested_section_is_not_wrapped():
    section = {"_target_": "builtins.dict", "kl": {"_target_": "rlhf_lightning.algorithms.KLPenalty", "kind": "x"}}
    built = build(section, "algorithm")
    assert built["kl"].kind == "x"
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
    ],
)
def test_hub_names_are_told_from_paths_that_are_not_there(value, missing, empty_folder):
    (empty_folder / "existing").mkdir()
    assert missing_locally(value) is missing


def test_a_run_folder_without_a_model_is_named_with_the_command_to_run(empty_folder):
    (empty_folder / "outputs" / "demo" / "sft").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no model in outputs/demo/sft .* first run: rlhf-train experiment=sft_demo"):
        check_inputs(compose_config("train", ["experiment=dpo_demo"]))


def test_the_bayes_ceiling_is_in_the_summary_where_labels_have_a_probability(empty_folder):
    rows = empty_folder / "pairs.jsonl"
    rows.write_text('{"label_probability": 0.9}\n{"label_probability": 0.2}\n')
    assert train.bayes_accuracy(str(rows)) == pytest.approx(0.85)
    rows.write_text('{"label_probability": 0.9}\n{}\n')
    assert train.bayes_accuracy(str(rows)) is None
    assert train.bayes_accuracy("org/name") is None
    assert train.bayes_accuracy(None) is None
