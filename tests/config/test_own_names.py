"""Names of the user's own are added by plain overrides; a misspelt key of a section is still an error."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typing_extensions import get_type_hints, is_typeddict

from rlhf_lightning.commands.composition import compose_config, with_own_names
from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.reference import groups, options
from rlhf_lightning.config.schema import TOP_LEVELS
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.sections import holds_own_names, section_of, section_type
from rlhf_lightning.value_checks import unwrap, without_null
from tests.programs import program

PPO = ["experiment=ppo", "model.path=x", "data.train=y"]
OWN = [
    ("train", PPO, "reward.arguments.x=1", {"reward": {"arguments": {"x": 1}}}),
    ("train", PPO, "reward.arguments.x.y=[1,2]", {"reward": {"arguments": {"x": {"y": [1, 2]}}}}),
    ("train", PPO, "reward.components.mine.weight=2", {"reward": {"components": {"mine": {"weight": 2}}}}),
    (
        "train",
        PPO,
        "reward.components.mine.arguments.x=2",
        {"reward": {"components": {"mine": {"arguments": {"x": 2}}}}},
    ),
    ("train", PPO, "logger.tags.who=me", {"logger": {"tags": {"who": "me"}}}),
    (
        "train",
        [*PPO, "rollout=vllm"],
        "rollout.engine_args.max_model_len=9",
        {"rollout": {"engine_args": {"max_model_len": 9}}},
    ),
    ("train", PPO, "requires.rows=make", {"requires": {"rows": "make"}}),
    (
        "train",
        ["callbacks=overoptimization"],
        "callbacks.overoptimization.scorers.gold.function=my.fn",
        {"callbacks": {"overoptimization": {"scorers": {"gold": {"function": "my.fn"}}}}},
    ),
    ("evaluate", [], "policies.sft=outputs/sft", {"policies": {"sft": "outputs/sft"}}),
    ("evaluate", [], "rewards.mine.model=outputs/rm", {"rewards": {"mine": {"model": "outputs/rm"}}}),
    ("evaluate", [], "gold.arguments.x=1", {"gold": {"arguments": {"x": 1}}}),
    ("collect", [], "policies.sft=outputs/sft", {"policies": {"sft": "outputs/sft"}}),
    ("chat", [], "reward.arguments.x=1", {"reward": {"arguments": {"x": 1}}}),
]


def holds(config: Any, wanted: Any) -> bool:
    if not isinstance(wanted, dict):
        return bool(config == wanted)
    return isinstance(config, dict) and all(name in config and holds(config[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("top", "words", "word", "wanted"), OWN, ids=[word for _, _, word, _ in OWN])
def test_a_name_of_the_users_own_needs_no_plus(top: str, words: list[str], word: str, wanted: Any) -> None:
    config = compose_config(top, [*words, word])
    assert holds(config, wanted)
    assert compose_config(top, [*words, f"++{word}"]) == config


@pytest.mark.parametrize(
    ("top", "word", "message"),
    [
        ("train", "reward.argument.x=1", r"^reward\.argument\.x: no such key"),
        ("train", "reward.components.mine.wieght=2", r"^reward\.components\.mine\.wieght: no such key"),
        ("train", "optimizer.lrr=1", r"^optimizer\.lrr: no such key; did you mean optimizer\.lr\?"),
        ("train", "callbacks.progres=null", r"^callbacks\.progres: no such key; did you mean callbacks\.progress\?"),
        (
            "train",
            "algorithm.kl.targget=1",
            r"^algorithm\.kl\.targget: no such key; did you mean algorithm\.kl\.target\?",
        ),
        ("train", "cost.arguments.x=1", r"^cost\.arguments\.x: the section cost is empty"),
        ("evaluate", "rewards.mine.modle=x", r"^rewards\.mine\.modle: no such key"),
        ("evaluate", "policy.sft=x", r"^policy\.sft: no such key"),
    ],
)
def test_a_misspelt_key_of_a_section_is_an_error(top: str, word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compose_config(top, [*(PPO if top == "train" else []), word])


def test_hydras_own_composition_takes_them_too() -> None:
    words = [*PPO, "reward.function=my.fn", "reward.arguments.x=7"]
    done = subprocess.run([program("rlhf-train"), *words, "--cfg", "job"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["reward"]["arguments"] == {"x": 7}
    sweep = with_own_names("train", [*words, "reward.arguments.y=1,2"])
    assert sweep == [*words[:-1], "++reward.arguments.x=7", "++reward.arguments.y=1,2"]


def own_names(kinds: Any, where: str) -> Iterator[str]:
    for name, kind in get_type_hints(kinds, include_extras=True).items() if kinds is not None else ():
        plain, made = without_null(unwrap(kind)), section_of(kind)
        if made is not None or is_typeddict(plain):
            yield from own_names(section_type(made, name) if made is not None else plain, f"{where}.{name}")
        elif holds_own_names(kind):
            yield f"{where}.{name}"


def sections(values: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the class and the name of every section in a config file."""
    if isinstance(values, dict):
        if "_target_" in values:
            yield values["_target_"], name
        for key, value in values.items():
            yield from sections(value, key)


def test_every_mapping_of_own_names_is_tried_above() -> None:
    found = {each for command, top in TOP_LEVELS.items() for each in own_names(top, command)}
    for group in groups():
        for option in options(group):
            values = yaml.safe_load((conf_dir() / group / f"{option}.yaml").read_text(encoding="utf-8"))
            for target, name in sections(values, group.rpartition("/")[2]):
                found |= set(own_names(section_type(target, name), name))
    stages = {"pipeline.stages", "pipeline.round"}  # `stages.ppo.optimizer.lr=1` is of the stage's own config
    tried = {"reward.arguments", "reward.components", "logger.tags", "rollout.engine_args", "train.requires"}
    tried |= {"overoptimization.scorers", "collect.policies", "chat.reward.arguments", "evaluate.policies"}
    tried |= {"evaluate.rewards", *(f"evaluate.{each}.arguments" for each in ("gold", "proxy", "reward"))}
    assert found == stages | tried
