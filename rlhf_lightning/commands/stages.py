"""The stages of a pipeline as training configs: each is an experiment with its overrides and earlier run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from typing_extensions import get_type_hints

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.schema import Stage
from rlhf_lightning.config.spelling import did_you_mean, keys_under, nearest
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.pipeline import StageConfig
from rlhf_lightning.runs.quoting import quoted
from rlhf_lightning.runs.rounds import POLICY, stages_of_rounds
from rlhf_lightning.source.constructors import signature
from rlhf_lightning.source.declarations import declaration, declared_data

Section: TypeAlias = "Mapping[str, Any]"
_STAGE_OVERRIDE = re.compile(r"^(\+\+|\+|~)?(stages|round)\.([\w-]+)\.(.+)$", re.DOTALL)
_GIVEN = {"model_from": "model.path", "reward_from": "reward.model", "data_from": "data.train"}  # to a training run
_HANDED = {"model_from": "model", "reward_from": "reward_model", "data_from": "data"}  # to a function
_OF_TRAINING = ("experiment", "overrides")
_FORMS = {"preference": "preferences", "unpaired": "unpaired"}  # kind of rows -> what an export calls them


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of the pipeline itself, and those of each stage's training config with the prefix taken off.

    >>> split_overrides(["seed=1", "stages.ppo.algorithm.kl.target=3", "stages.ppo.experiment=mine"])
    (['seed=1', '++stages.ppo.experiment=mine'], {'ppo': ['algorithm.kl.target=3']})
    >>> split_overrides(["round.ppo.optimizer.lr=1e-4"])
    ([], {'round.ppo': ['optimizer.lr=1e-4']})
    """
    own: list[str] = []
    of_stages: dict[str, list[str]] = {}
    for override in overrides:
        match = _STAGE_OVERRIDE.match(override)
        if match is None:
            own.append(override)
        elif re.split(r"[.=]", match[4])[0] in get_type_hints(Stage):
            own.append(override if match[1] else f"++{override}")  # the pipeline's file may leave it out
        else:
            name = match[3] if match[2] == "stages" else f"round.{match[3]}"
            of_stages.setdefault(name, []).append(f"{match[1] or ''}{match[4]}")
    return own, of_stages


def compose_stages(
    pipeline: Mapping[str, Any],
    run_dir: Path,
    of_stages: Mapping[str, Sequence[str]],
    config_dir: str | None = None,
) -> list[StageConfig]:
    """The training config of every stage, in order.

    Raises:
        UserError: an override names no stage, a stage begins from a later one, or a stage cannot be composed.
    """
    names = list(pipeline["stages"])
    bases = {name: f"round.{base}" for base, _, name in stages_of_rounds(pipeline)}
    _check_names(of_stages, names, bases)
    stages: list[StageConfig] = []
    for i, name in enumerate(names):
        stage = _with_policy(name, pipeline["stages"][name], stages)
        for key in _GIVEN:
            if stage.get(key) is not None and stage[key] not in names[:i]:
                allowed = ", ".join(names[:i]) or "none, this is the first"
                raise UserError(f'stages.{name}.{key}: found "{stage[key]}"; allowed: an earlier stage ({allowed})')
        given = [*of_stages.get(bases.get(name, ""), []), *of_stages.get(name, [])]
        compose = _call if stage.get("call") else _training
        config = compose(name, stage, pipeline, run_dir, given, config_dir)
        stages.append(StageConfig(name, config, stage.get("model_from")))
    return stages


def _check_names(given: Mapping[str, Any], names: Sequence[str], bases: Mapping[str, str]) -> None:
    """Raise UserError for an override of a stage that is not there."""
    for name in given:
        if name not in names and name not in bases.values():
            written = name if name.startswith("round.") else f"stages.{name}"
            allowed = list(dict.fromkeys(bases.values())) if written == name else names
            match = did_you_mean(nearest(name, allowed))
            raise UserError(f"{written}: no such stage; allowed: {', '.join(allowed) or 'none'}{match}")


def _with_policy(name: str, stage: Mapping[str, Any], earlier: Sequence[StageConfig]) -> Mapping[str, Any]:
    """The stage with the name of the policy that was trained last for `model_from: policy`."""
    if stage.get("model_from") != POLICY or POLICY in [each.name for each in earlier]:
        return stage
    policies = [each.name for each in earlier if each.gives_policy]
    if not policies:
        raise UserError(f"stages.{name}.model_from: found policy, but no stage before it trains one")
    return {**stage, "model_from": policies[-1]}


def _training(
    name: str, stage: Section, pipeline: Section, run_dir: Path, given: list[str], config_dir: str | None
) -> dict[str, Any]:
    """The training config of a stage."""
    if not stage.get("experiment"):
        raise UserError(f"stages.{name}.experiment: missing; a stage trains an experiment, or calls a function (call)")
    set_here = [*(stage.get("overrides") or {}), *(re.split("=", each)[0].lstrip("+") for each in given)]
    for key, taken in _GIVEN.items():
        if stage.get(key) and taken in set_here:
            what = "rows" if key == "data_from" else "model"
            raise UserError(
                f"stages.{name}.{taken}: the stage takes the {what} of {key}={stage[key]}; set one of the two "
                f"(stages.{name}.{key}=null)"
            )
    overrides = _overrides(name, stage, pipeline, run_dir) + given
    with keys_under(f"stages.{name}."):
        config = compose_config("train", overrides, config_dir)
    if not any(re.match(r"\W*logger\b", override) for override in overrides):
        config["logger"] = pipeline["logger"]
    if stage.get("data_from"):
        kind = declared_data(config)
        if kind not in _FORMS:
            raise UserError(
                f"stages.{name}.data_from: {declaration(config).name} learns from rows of the kind {kind}; an export "
                f"has those of {' and '.join(_FORMS)}"
            )
        config["data"]["train"] = str(run_dir / stage["data_from"] / f"{_FORMS[kind]}.jsonl")
    return config


def _call(
    name: str, stage: Section, pipeline: Section, run_dir: Path, given: list[str], config_dir: str | None
) -> dict[str, Any]:
    """The config of a stage that calls a function, with its folder and those of earlier stages as arguments."""
    key, call = f"stages.{name}", stage["call"]
    found = [*(re.split("=", each)[0].lstrip("+~") for each in given), *filter(stage.get, _OF_TRAINING)]
    if found:
        raise UserError(f"{key}.{found[0]}: the stage calls a function, whose arguments are {key}.call.<key>")
    if not call.get("_target_"):
        raise UserError(f"{key}.call._target_: missing; give the dotted path of a function, or stages of `round` alone")
    handed = {_HANDED[each]: str(run_dir / stage[each]) for each in _HANDED if stage.get(each)}
    taken = signature(call["_target_"])
    for each, argument in _HANDED.items():
        if argument in handed and argument not in taken.parameters and not taken.takes_more:
            raise UserError(f"{key}.{each}: {call['_target_']} has no argument `{argument}` to take it")
    section = {**call, "folder": str(run_dir / name), **handed}
    return {"name": f"{pipeline['name']}-{name}", "run_dir": str(run_dir / name), "call": section}


def _overrides(name: str, stage: Mapping[str, Any], pipeline: Mapping[str, Any], run_dir: Path) -> list[str]:
    overrides = [
        f"experiment={stage['experiment']}",
        f"name={pipeline['name']}-{name}",
        f"seed={pipeline['seed']}",
        f"run_dir={_quoted(run_dir / name)}",
    ]
    if stage.get("model_from"):
        overrides.append(f"model.path={_quoted(run_dir / stage['model_from'])}")
    if stage.get("reward_from"):
        overrides.append(f"reward.model={_quoted(run_dir / stage['reward_from'])}")
    return overrides + [f"{key}={_quoted(value)}" for key, value in (stage.get("overrides") or {}).items()]


def _quoted(value: Any) -> str:
    """A value in Hydra's grammar: texts in its quotes, and of the rest JSON's is a part of it."""
    if isinstance(value, str | Path):
        return quoted(str(value))
    return re.sub(r'"(\w+)": ', r"\1: ", json.dumps(value, ensure_ascii=False))
