"""Every config in conf/ composes and is valid, and the schema knows every class named there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import yaml
from pydantic import ConfigDict, TypeAdapter
from typing_extensions import get_type_hints

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.pipeline import check_pipeline
from rlhf_lightning.commands.stages import compose_stages
from rlhf_lightning.config.checks import check_sections
from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.config.schema import Chat, Evaluate, Export, Pipeline, Train
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import groups, options
from rlhf_lightning.runs import pipeline as runs
from rlhf_lightning.runs.rounds import with_rounds
from rlhf_lightning.source.sections import section_type

EXPERIMENTS = options("experiment")
# What a user must supply, so that the example experiments on their own files are valid.
GIVEN = ["model.path=gpt2", "data.train=org/name"]
PPO_GIVEN = [*GIVEN, "reward.function=my_package.my_reward"]


def given(experiment: str) -> list[str]:
    if experiment.endswith("_demo"):
        return []
    section = yaml.safe_load((conf_dir() / "experiment" / f"{experiment}.yaml").read_text())
    named = [each["override /data"] for each in section["defaults"] if "override /data" in each]
    costs = ["cost.function=my_package.my_cost"] if experiment == "ppo_lagrangian" else []
    return [*(PPO_GIVEN if named == ["prompts"] else GIVEN), *costs]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_is_valid(experiment, empty_folder):
    config = compose_config("train", [f"experiment={experiment}", *given(experiment)])
    validate(config, Train)
    check_sections(config)
    assert config["name"] == experiment


@pytest.mark.parametrize("group", [group for group in groups("train") if group != "experiment"])
def test_every_option_of_every_group_is_valid(group):
    for option in options(group):
        scorers = ["callbacks.overoptimization.scorers={gold: {function: my_package.gold}}"]
        more = scorers if option == "overoptimization" else []
        validate(compose_config("train", [f"{group}={option}", *GIVEN, *more]), Train)


@pytest.mark.parametrize("file", sorted((conf_dir() / "experiment").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_opens_with_the_command_that_runs_it(file):
    package, command = file.read_text().splitlines()[:2]
    assert package == "# @package _global_"
    assert command.startswith(f"# rlhf-train experiment={file.stem}")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_command_in_an_experiment_file_gives_everything_it_needs(experiment, empty_folder):
    command = (conf_dir() / "experiment" / f"{experiment}.yaml").read_text().splitlines()[1]
    config = compose_config("train", command.removeprefix("# rlhf-train ").split())
    validate(config, Train)
    check_sections(config)


def test_a_demo_without_its_input_names_the_command_to_run_first(empty_folder):
    with pytest.raises(ValueError, match="outputs/demo/sft does not exist; first run: rlhf-train experiment=sft_demo"):
        check_inputs(compose_config("train", ["experiment=ppo_demo"]))


def test_the_first_demo_needs_nothing(empty_folder):
    check_inputs(compose_config("train", ["experiment=sft_demo"]))


@pytest.mark.parametrize("option", options("pipeline"))
def test_every_pipeline_composes_and_is_valid(option, empty_folder):
    given = ["++round.collect.call.prompts=org/name"] if option == "instructgpt_rounds" else []
    pipeline = with_rounds(compose_config("pipeline", [f"pipeline={option}", "run_dir=there", *given]))
    validate(pipeline, Pipeline)
    missing = {
        name: ["data.train=org/name"]
        for name, stage in pipeline["stages"].items()
        if option not in ("demo", "algorithms", "rounds") and not stage.get("call") and not stage.get("data_from")
    }
    if missing:
        missing["sft"].append("model.path=gpt2")
    stages = compose_stages(pipeline, empty_folder / "there", missing)
    check_pipeline(runs.Pipeline(pipeline, empty_folder / "there", stages))
    assert list(dict.fromkeys(stage.stage or stage.name for stage in stages)) == list(pipeline["stages"])


def test_the_evaluation_config_is_valid():
    config = compose_config("evaluate", ["policies={a:gpt2}", "prompts=org/name", "baseline=a"])
    validate(config, Evaluate)


def test_the_export_and_the_chat_config_are_valid():
    validate(compose_config("export", ["run=a", "to=b"]), Export)
    validate(compose_config("chat", ["model=outputs/demo/ppo"]), Chat)  # model is also the name of a group


def sections_of(value: Any, key: str = "") -> Iterator[tuple[str, dict]]:
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield from sections_of(inner, f"{key}.{name}".lstrip("."))
    if isinstance(value, dict) and "_target_" in value:
        yield key, value


def shipped_sections() -> dict[str, str]:
    """Return every class that the configs name, with the key of its section in the whole config."""
    found = {}
    for file in sorted(conf_dir().rglob("*.yaml")):
        package = ".".join(file.parent.relative_to(conf_dir()).parts)
        content = yaml.safe_load(file.read_text())
        for key, section in sections_of(content, "" if "@package" in file.read_text() else package):
            found.setdefault(section["_target_"], key)
    return {target: key for target, key in found.items() if not target.startswith("hydra_plugins.")}  # Hydra's own


SECTIONS = shipped_sections()
# Constructor arguments that code passes and a config cannot.
PASSED = {
    "algorithm": {"model", "tokenizer", "optimizer", "scheduler", "reward", "cost", "rollout", "seed", "engine"},
    "data": {"tokenizer", "seed"},
    "call": {"folder", "model", "reward_model", "data"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "num_training_steps"},
    "logger": {"notice", "parent", "store"},
    "trainer": {
        *("logger", "callbacks", "default_root_dir", "use_distributed_sampler", "enable_model_summary"),
        *("limit_test_batches", "limit_predict_batches", "barebones", "model_registry", "enable_autolog_hparams"),
    },
}


def arguments_of(target: str) -> dict[str, inspect.Parameter]:
    """Return the arguments of a target; for a class with **kwargs, also those of its bases."""
    module, _, name = target.rpartition(".")
    call = getattr(importlib.import_module(module), name)
    if not inspect.isclass(call) or dataclasses.is_dataclass(call):
        return dict(inspect.signature(call).parameters)
    found: dict[str, inspect.Parameter] = {}
    for cls in call.__mro__:
        if "__init__" in vars(cls):
            found = dict(inspect.signature(cls.__init__).parameters) | found
            if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls.__init__).parameters.values()):
                break
    return {name: each for name, each in found.items() if name != "self" and each.kind not in (2, 4)}


@pytest.mark.parametrize("target", sorted(SECTIONS))
def test_the_keys_read_from_the_source_are_the_arguments_of_the_class(target):
    keys = set(get_type_hints(section_type(target, SECTIONS[target])))
    taken = {name for name, each in arguments_of(target).items() if each.annotation != "None"}  # not what it refuses
    arguments = taken - PASSED.get(SECTIONS[target], set())
    if target.endswith(".DDPStrategy"):  # it passes unknown arguments on to torch's class
        assert {"find_unused_parameters", "bucket_cap_mb"} <= keys - arguments
        keys -= set(inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters)
    assert keys == arguments


OURS = sorted(target for target in SECTIONS if target.startswith("rlhf_lightning."))


@pytest.mark.parametrize("target", OURS)
def test_every_setting_of_ours_has_a_type_and_its_default_is_one_of_its_values(target):
    hints = get_type_hints(section_type(target, SECTIONS[target]), include_extras=True)
    assert Any not in hints.values()
    assert not {name for name, hint in hints.items() if hint in (int, float)}, "a number without a range"
    for name, parameter in arguments_of(target).items():
        if name in hints and isinstance(parameter.default, int | float | str | bool):
            TypeAdapter(hints[name], config=ConfigDict(strict=True)).validate_python(parameter.default)


@pytest.mark.parametrize("target", sorted(SECTIONS))
def test_no_section_takes_a_key_that_is_not_there(target):
    with pytest.raises(UserError, match=r"\.no_such_key: no such key"):
        validate({SECTIONS[target]: {"_target_": target, "no_such_key": 1}}, None)


def test_conf_holds_only_yaml_that_parses():
    for file in conf_dir().rglob("*"):
        assert file.is_dir() or yaml.safe_load(file.read_text()) is not None, file
