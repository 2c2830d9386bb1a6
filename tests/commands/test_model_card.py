from __future__ import annotations

import json

import pytest
import yaml

from rlhf_lightning.runs.lineage import lineage
from rlhf_lightning.runs.model_card import QUANTIZED, library_versions, model_card
from rlhf_lightning.runs.run import read_run
from tests.commands.runs import write_run


def card(run_folder, name="my_model", load_from="my_model", adapter=False, chat=False) -> str:
    run = read_run(run_folder)
    assert run is not None
    return model_card(run, name, load_from, adapter, chat)


def front_matter(text: str) -> dict:
    opening, fields, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(fields)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n\n")[1].split("\n\n## ")[0].strip()


def test_the_front_matter_is_what_the_hub_reads(empty_folder):
    fields = front_matter(card(write_run(empty_folder / "sft", "org/base")))
    assert fields == {
        "library_name": "transformers",
        "base_model": "org/base",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf-lightning", "sft"],
    }


def test_a_base_that_is_a_path_is_left_out_of_the_front_matter_which_the_hub_would_refuse(empty_folder):
    (empty_folder / "base").mkdir()
    for path in ("base", "./base", "outputs/some/base"):
        assert "base_model" not in front_matter(card(write_run(empty_folder / "sft", path)))


def test_a_reward_model_says_so_and_shows_the_moments_of_its_scores(empty_folder):
    summary = {"val/score_mean": 1.5, "val/score_std": 0.25}
    text = card(write_run(empty_folder / "reward", algorithm="RewardModule", summary=summary))
    assert front_matter(text)["pipeline_tag"] == "text-classification"
    assert front_matter(text)["tags"] == ["rlhf-lightning", "reward-model"]
    assert "mean 1.5 and standard deviation 0.25" in text
    assert "AutoModelForSequenceClassification" in section(text, "Use")


@pytest.mark.parametrize("quantization", [None, {"_target_": "rlhf_lightning.models.NF4"}])
def test_training_on_4_bit_weights_is_said(quantization, empty_folder):
    run = write_run(empty_folder / "run", model={"path": "org/base", "quantization": quantization})
    assert (QUANTIZED in card(run)) == (quantization is not None)


@pytest.mark.parametrize(("settings", "said"), [({"decay": 0.9}, True), ({"decay": 0.9, "export": False}, False)])
def test_an_average_over_the_steps_is_said(settings, said, empty_folder):
    average = {"_target_": "rlhf_lightning.callbacks.TrainableAverage", **settings}
    text = card(write_run(empty_folder / "run", callbacks={"progress": None, "average": average}))
    assert ("an exponential moving average (decay 0.9) of those in training" in text) == said


def test_an_adapter_names_its_own_base_and_peft(empty_folder):
    run = write_run(empty_folder / "lora", "org/base")
    (run / "model").mkdir()
    (run / "model" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    text = card(run, adapter=True)
    fields = front_matter(text)
    assert (fields["library_name"], fields["base_model"]) == ("peft", "org/other")
    assert "lora" in fields["tags"]
    assert "AutoPeftModelForCausalLM" in section(text, "Use")


def test_data_metrics_and_versions_are_tables_of_what_is_known(empty_folder):
    summary = {"experiment": "sft", "train_rows": 90, "val_rows": 10, "val/loss": 0.123456789, "broken": None}
    text = card(write_run(empty_folder / "sft", summary=summary))
    assert section(text, "Data").splitlines()[2:] == [
        "| train | rows.jsonl | 90 |",
        "| val | 0.1 of train's prompts | 10 |",
    ]
    assert section(text, "Metrics").splitlines()[2:] == ["| `val/loss` | 0.12346 |", "| `broken` | None |"]
    assert all(f"{name} {number}" in section(text, "Versions") for name, number in library_versions().items())
    assert {"Python", "torch", "transformers", "peft"} <= set(library_versions())


def test_a_run_without_metrics_has_no_table_of_them(empty_folder):
    assert "## Metrics" not in card(write_run(empty_folder / "sft", summary={}))


def test_the_config_is_the_runs_without_the_password_of_its_tracking_server(empty_folder):
    logger = {"tracking_uri": "https://me:secret@server:5000/path", "mail": "me@server"}
    text = card(write_run(empty_folder / "sft", logger=logger))
    block = section(text, "Config").removeprefix("```yaml\n").removesuffix("\n```")
    config = yaml.safe_load(block)
    assert "secret" not in text
    assert config["logger"] == {"tracking_uri": "https://***@server:5000/path", "mail": "me@server"}
    assert config["data"]["train"] == "rows.jsonl"


def test_the_lineage_goes_through_the_runs_down_to_the_base_and_names_the_reward_model(empty_folder):
    write_run(empty_folder / "sft", "org/base")
    write_run(empty_folder / "dpo", "sft/model", "DPOModule")  # the model in a run folder is that run's
    write_run(empty_folder / "reward", "sft", "RewardModule")
    write_run(empty_folder / "ppo", "dpo", "PPOModule", reward={"model": "reward", "function": None})
    text = card(empty_folder / "ppo")
    lines = section(text, "Lineage").splitlines()
    assert [line.split("`")[1].rpartition("/")[2] for line in lines[:4]] == ["ppo", "dpo", "sft", "base"]
    assert lines[0].endswith("(`ppo`, seed 3)")
    assert lines[3] == "4. `org/base`, the base model"
    assert lines[5] == "Reward model: `reward`: reward modelling (`reward`, seed 3)"
    assert front_matter(text)["base_model"] == "org/base"


def test_every_part_of_a_weighted_reward_is_named(empty_folder):
    reward = {"components": {"a": {"model": "org/reward", "weight": 0.5}, "b": {"function": "my.fn"}}}
    text = section(card(write_run(empty_folder / "ppo", algorithm="PPOModule", reward=reward)), "Lineage")
    assert "Reward model, part a with weight 0.5: `org/reward`" in text
    assert "Reward function, part b with weight 1: `my.fn`" in text


def test_every_function_of_a_sum_and_a_server_are_named(empty_folder):
    for reward, said in (
        ({"functions": ["my.fn", "my.other"], "weights": [1.0, 0.5]}, "Reward function with weight 0.5: `my.other`"),
        ({"url": "http://host:1/score"}, "Reward server: `http://host:1/score`"),
    ):
        run = write_run(empty_folder / "ppo", algorithm="PPOModule", reward=reward)
        assert said in section(card(run), "Lineage")


def test_a_run_that_began_from_its_own_folder_ends_its_lineage_there(empty_folder):
    run = read_run(write_run(empty_folder / "sft", "sft"))
    assert run is not None
    assert lineage(run) == ([], "sft")


@pytest.mark.parametrize("content", ["stages: {}", "just text", "[1, 2]"])
def test_a_folder_with_another_config_is_no_training_run(content, empty_folder):
    (empty_folder / "config.yaml").write_text(content)
    assert read_run(empty_folder) is None
    assert read_run(empty_folder / "nowhere") is None


def test_an_algorithm_from_outside_is_named_by_its_class(empty_folder):
    text = card(write_run(empty_folder / "x", algorithm="SimPOModule"))
    assert front_matter(text)["tags"] == ["rlhf-lightning", "simpo"]
    assert "`SimPOModule`" in text
