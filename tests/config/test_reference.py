"""Every key that a config can have is in the reference, with its type, its default and what it means."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from typing_extensions import get_type_hints

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.reference import (
    Setting,
    command_settings,
    groups,
    option_settings,
    options,
    yaml_comments,
)
from rlhf_lightning.config.schema import TOP_LEVELS
from rlhf_lightning.config.spelling import dotted_keys
from rlhf_lightning.source.docstrings import argument_lines
from rlhf_lightning.value_types import Positive

OPTIONS = [(group, option) for group in groups() for option in options(group)]
GROUPS_OF_TRAIN = {"model", "data", "optimizer", "scheduler", "trainer", "algorithm", "callbacks", "logger"}


def keys(settings: list[Setting]) -> set[str]:
    """Return every key, and the sections that contain it."""
    parts = [each.key.split(".") for each in settings]
    return {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_key_of_a_file_is_there(group: str, option: str) -> None:
    content = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text())
    content.pop("defaults", None)
    if "_target_" not in content:  # of callbacks; the files of these two only say null
        assert group == "callbacks" or option in ("ddp", "fsdp2", "none") or "deepspeed" in option
    assert set(dotted_keys(content)) <= keys(option_settings(group, option)) | {"strategy"}


@pytest.mark.parametrize("name", ["PPOModule", "DPOModule", "PolicyGradientModule", "KTOModule", "RewardModule"])
def test_every_argument_of_a_constructor_is_there(name: str) -> None:
    from rlhf_lightning import algorithms

    module = getattr(algorithms, name)
    option = {"PolicyGradientModule": "grpo", "RewardModule": "reward"}.get(name, name.removesuffix("Module").lower())
    arguments = {
        argument
        for cls in module.__mro__
        if cls.__module__.startswith("rlhf_lightning.") and "__init__" in vars(cls)
        for argument, each in inspect.signature(cls.__init__).parameters.items()
        if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    given = {"self", "model", "tokenizer", "optimizer", "scheduler", "reward", "rollout", "seed", "engine"}
    assert arguments - given <= keys(option_settings("algorithm", option))


@pytest.mark.parametrize("command", TOP_LEVELS)
def test_every_key_of_a_command_is_there(command: str) -> None:
    assert set(get_type_hints(TOP_LEVELS[command])) <= keys(command_settings(command))


def test_every_command_with_a_config_is_there() -> None:
    files = {file.stem for file in conf_dir().glob("*.yaml")}
    folders = {path.name for path in conf_dir().iterdir() if (path / f"{path.name}.yaml").is_file()}
    assert files | folders == set(TOP_LEVELS)


def test_every_key_of_ours_says_what_it_means() -> None:
    theirs = ("optimizer", "scheduler", "trainer")  # of torch, transformers and Lightning, which have their own pages
    silent = {
        f"{group}={option} {each.key}"
        for group, option in OPTIONS
        if group not in theirs and option != "none"
        for each in option_settings(group, option)
        if not each.meaning
    }
    silent |= {
        f"rlhf-{command} {each.key}"
        for command in TOP_LEVELS
        for each in command_settings(command)
        if not each.meaning and each.key not in GROUPS_OF_TRAIN
    }
    assert not silent


def of(group: str, option: str, key: str) -> Setting:
    (found,) = [each for each in option_settings(group, option) if each.key == key]
    return found


def test_an_entry_has_range_default_and_meaning() -> None:
    assert of("algorithm", "ppo", "kl.target") == Setting(
        "kl.target",
        "a number > 0 or null",
        "6.0",
        "KL to the reference per response (a sum over its tokens), nats; null for fixed",
    )
    assert of("model", "causal_lm", "path").default is None


def test_a_key_that_no_file_gives_has_the_constructors_default_and_docstring() -> None:
    guardrail = of("callbacks", "ppo", "guardrails.kl_factor")
    assert (guardrail.default, "objective/kl" in guardrail.meaning) == ("3.0", True)


def test_an_option_has_what_the_options_it_is_made_from_give() -> None:
    assert of("callbacks", "overoptimization", "checkpoint.save_top_k").default == "1"
    assert of("callbacks", "overoptimization", "samples.rows").default == "8"


def test_a_line_break_is_written_as_in_yaml() -> None:
    default = of("data", "steps", "step_separator").default
    assert default == r'"\n"'
    assert yaml.safe_load(default) == "\n"


def test_an_option_of_the_users_own_folder_is_read_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "algorithm").mkdir()
    (tmp_path / "algorithm/mine.yaml").write_text(
        "_target_: rlhf_lightning.algorithms.SimPOModule\nbeta: 7.5  # mine\n"
    )
    found = {each.key: each for each in option_settings("algorithm", "mine", tmp_path)}
    assert (found["beta"].default, found["beta"].meaning) == ("7.5", "mine")
    assert found["gamma_beta_ratio"].meaning


def test_comments_are_those_of_their_own_key() -> None:
    text = 'a: "# no comment"\nb:  # of b\n  c: {d: 1}  # of c\n# between\ne: 1  # of e\n      # and on\nf: 2\n'
    assert yaml_comments(text) == {"b": "of b", "b.c": "of c", "e": "of e and on"}


def test_a_docstring_ends_its_arguments_where_the_next_section_begins() -> None:
    text = "Sum.\n\nArgs:\n    x: one\n        and more.\n    y, z: two.\n\nReturns:\n    w: not an argument.\n"
    assert argument_lines(text) == {"x": "one and more.", "y": "two.", "z": "two."}


def test_a_range_is_told_as_the_error_tells_it() -> None:
    from rlhf_lightning.value_checks import describe

    assert describe(Positive) == of("algorithm", "dpo", "beta").allowed
