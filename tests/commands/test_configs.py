"""Every config in conf/ composes and is valid, and the schema knows every class that is named there."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import get_origin

import pytest
import torch
import yaml
from typing_extensions import Required, get_type_hints

from rlhf_lightning.commands.checks import check_inputs, check_sections
from rlhf_lightning.commands.composition import compose_config, conf_dir
from rlhf_lightning.commands.help import GROUPS, options
from rlhf_lightning.commands.package_schema import PACKAGE_SECTIONS
from rlhf_lightning.commands.pipeline import check_pipeline
from rlhf_lightning.commands.schema import Chat, Evaluate, Export, Pipeline, Train
from rlhf_lightning.commands.stages import compose_stages
from rlhf_lightning.commands.validation import TARGETS, validate

EXPERIMENTS = options("experiment")
# What a user must give, so that the example experiments on own files are valid.
GIVEN = ["model.path=gpt2", "data.train=org/name"]
PPO_GIVEN = [*GIVEN, "reward.function=my_package.my_reward"]


def given(experiment: str) -> list[str]:
    if experiment.endswith("_demo"):
        return []
    return PPO_GIVEN if "ppo" in experiment else GIVEN


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_is_valid(experiment, empty_folder):
    config = compose_config("train", [f"experiment={experiment}", *given(experiment)])
    validate(config, Train)
    check_sections(config)
    assert config["name"] == experiment


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "experiment"])
def test_every_option_of_every_group_is_valid(group):
    for option in options(group):
        validate(compose_config("train", [f"{group}={option}", *GIVEN]), Train)


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
    pipeline = compose_config("pipeline", [f"pipeline={option}", "run_dir=there"])
    validate(pipeline, Pipeline)
    missing = {} if option == "demo" else {name: ["data.train=org/name"] for name in pipeline["stages"]}
    if missing:
        missing["sft"].append("model.path=gpt2")
    stages = compose_stages(pipeline, empty_folder / "there", missing)
    check_pipeline(pipeline, empty_folder / "there", stages)
    assert [stage.name for stage in stages] == list(pipeline["stages"])


def test_the_evaluation_config_is_valid():
    config = compose_config("evaluate", ["policies={a:gpt2}", "prompts=org/name", "baseline=a"])
    validate(config, Evaluate)


def test_the_export_and_the_chat_config_are_valid():
    validate(compose_config("export", ["run=a", "to=b"]), Export)
    validate(compose_config("chat", ["model=outputs/demo/ppo"]), Chat)  # model is also the name of a group


def test_every_class_of_ours_in_the_configs_has_a_schema():
    text = "\n".join(file.read_text() for file in conf_dir().rglob("*.yaml"))
    targets = {line.split("_target_:")[1].split("#")[0].strip() for line in text.splitlines() if "_target_:" in line}
    assert targets
    launchers = {target for target in targets if target.startswith("hydra_plugins.")}  # checked by Hydra and submitit
    assert not targets - launchers - set(TARGETS)


def arguments_of(target: str) -> dict[str, inspect.Parameter]:
    """The arguments of a target; of a class with **kwargs also those of the classes above it."""
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
    return found


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_key_of_the_schema_is_an_argument_of_its_class(target):
    fields = set(get_type_hints(TARGETS[target]))
    arguments = set(arguments_of(target))
    if target.endswith(".DDPStrategy"):  # it hands what it does not know on to torch's class
        arguments |= set(inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters)
    assert fields <= arguments, f"{target} has no {fields - arguments}"


# What the commands pass themselves, and what only code passes.
PASSED = {"self", "args", "kwargs", "model", "tokenizer", "optimizer", "scheduler", "reward", "rollout", "seed"}
IN_CODE = {"engine"}


@pytest.mark.parametrize("target", sorted(PACKAGE_SECTIONS))
def test_every_argument_of_our_classes_is_a_key_of_the_schema(target):
    assert set(arguments_of(target)) - PASSED - IN_CODE <= set(get_type_hints(PACKAGE_SECTIONS[target]))


@pytest.mark.parametrize("target", sorted(PACKAGE_SECTIONS))
def test_the_defaults_of_our_classes_are_values_the_schema_allows(target):
    defaults = {
        name: parameter.default
        for name, parameter in arguments_of(target).items()
        if name in get_type_hints(PACKAGE_SECTIONS[target])
        and parameter.default is not parameter.empty
        and isinstance(parameter.default, int | float | str | bool)
    }
    hints = get_type_hints(PACKAGE_SECTIONS[target], include_extras=True)
    required = {name: "x" for name, hint in hints.items() if get_origin(hint) is Required}
    validate({"section": {"_target_": target, **required, **defaults}}, None)


def test_conf_holds_only_yaml_that_parses():
    for file in conf_dir().rglob("*"):
        assert file.is_dir() or yaml.safe_load(file.read_text()) is not None, file
