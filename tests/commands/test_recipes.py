"""The recipes for real models: each is valid, fits the hardware that it names, and quotes rlhf-plan."""

from __future__ import annotations

import re

import pytest
from transformers import LlamaConfig, Qwen2Config

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.plan import configs
from rlhf_lightning.commands.planned_run import planned_run
from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.planning import make_plan, room

ARCHITECTURES = {
    "llama8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
    "qwen7b": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
}
SIZED = re.compile(r"^# Sized for (\d+) GPUs? of (\d+) GB: ([\d.]+) GiB (?:on each )?by rlhf-plan", re.MULTILINE)
RECIPES = sorted(file.stem for file in (conf_dir() / "experiment").glob("*.yaml") if SIZED.search(file.read_text()))


@pytest.fixture
def folders(empty_folder):
    """Make models as the commands name them, without weights."""
    for name, architecture in ARCHITECTURES.items():
        architecture.save_pretrained(name)
    return empty_folder


def command_of(recipe: str) -> list[str]:
    text = (conf_dir() / "experiment" / f"{recipe}.yaml").read_text()
    return text.splitlines()[1].removeprefix("# rlhf-train ").split()


def test_there_are_recipes_for_one_gpu_and_for_eight():
    devices = {compose_config("train", command_of(recipe))["trainer"]["devices"] for recipe in RECIPES}
    assert devices == {1, 8}
    assert len(RECIPES) >= 6


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_fits_and_says_what_the_planner_says(recipe, folders):
    gpus, size, told = SIZED.findall((conf_dir() / "experiment" / f"{recipe}.yaml").read_text())[0]
    model = f"model.path={recipe.split('_')[0]}"
    overrides = [word for word in command_of(recipe) if not word.startswith("model.path")]
    ((config, _),) = configs([*overrides, model])
    plan = make_plan(planned_run(config))
    assert config["trainer"]["devices"] == int(gpus)
    assert plan.peak <= room(float(size))
    assert plan.peak / 2**30 == pytest.approx(float(told), abs=0.1)


def test_the_pipeline_on_hub_sets_fits_stage_by_stage(folders):
    stages = list(configs(["pipeline=instructgpt_hub", "run_dir=there", "stages.sft.model.path=llama8b"]))
    assert len(stages) == 3
    for config, from_adapter in stages:
        assert make_plan(planned_run(config, from_adapter)).peak <= room(24)
