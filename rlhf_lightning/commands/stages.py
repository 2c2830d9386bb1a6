"""The stages of a pipeline as training configs: each is an experiment with its overrides and earlier run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.spelling import keys_under
from rlhf_lightning.config.stage_overrides import check_names
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.calls import call_config
from rlhf_lightning.runs.pipeline import StageConfig
from rlhf_lightning.runs.quoting import quoted
from rlhf_lightning.runs.rounds import stages_of_rounds, with_policy
from rlhf_lightning.source.declarations import declaration, declared_data

Section: TypeAlias = "Mapping[str, Any]"
_GIVEN = {"model_from": "model.path", "reward_from": "reward.model", "data_from": "data.train"}  # of a training run
_FORMS = {"preference": "preferences", "unpaired": "unpaired"}  # kind of rows -> what an export calls them


def compose_stages(
    pipeline: Mapping[str, Any],
    run_dir: Path,
    of_stages: Mapping[str, Sequence[str]],
    config_dir: str | None = None,
) -> list[StageConfig]:
    """Return the training config of every stage, in order.

    Raises:
        UserError: an override names an unknown stage, a stage begins from a later one, or a stage cannot be composed.
    """
    names = list(pipeline["stages"])
    bases = {name: f"round.{base}" for base, _, name in stages_of_rounds(pipeline)}
    check_names(of_stages, names, bases)
    stages: list[StageConfig] = []
    for i, name in enumerate(names):
        policies = [each.name for each in stages if each.gives_policy]
        stage = with_policy(name, pipeline["stages"][name], policies)
        for key in _GIVEN:
            if stage.get(key) is not None and stage[key] not in names[:i]:
                allowed = ", ".join(names[:i]) or "none, this is the first"
                raise UserError(f'stages.{name}.{key}: found "{stage[key]}"; must be an earlier stage ({allowed})')
        given = [*of_stages.get(bases.get(name, ""), []), *of_stages.get(name, [])]
        if stage.get("call"):
            if given:
                raise UserError(f"stages.{name}: it calls a function, whose arguments are stages.{name}.call.<key>")
            config = call_config(name, stage, pipeline["name"], run_dir)
        else:
            config = _training(name, stage, pipeline, run_dir, given, config_dir)
        _check_kinds(name, stage, config, {each.name: each for each in stages})
        stages.append(StageConfig(name, config, stage.get("model_from")))
    return stages


def _check_kinds(name: str, stage: Section, config: Section, before: Mapping[str, StageConfig]) -> None:
    """Raise UserError for an earlier stage that does not leave what this one takes from it."""
    key = f"stages.{name}"
    model, reward, data = (before.get(str(stage.get(each))) for each in _GIVEN)
    if model is not None and not model.trains:
        raise UserError(f'{key}.model_from: found "{model.name}", which trains no model; must be a stage that does')
    if model is not None and model.scores and "call" not in config and not declaration(config).scores:
        raise UserError(f'{key}.model_from: found "{model.name}", a reward model; must be a stage that trains a policy')
    if reward is not None and not reward.scores:
        raise UserError(f'{key}.reward_from: found "{reward.name}"; must be a stage that trains a reward model')
    if data is not None and (data.trains or _writes_no_rows(str(data.config["call"]["_target_"]))):
        raise UserError(
            f'{key}.data_from: found "{data.name}", which writes no rows; must be a stage that exports judgements'
        )


def _writes_no_rows(target: str) -> bool:
    """Return whether a function of this package writes no rows; a user's own may."""
    return target.startswith("rlhf_lightning.") and not target.endswith(".export_judgements")


def _training(
    name: str, stage: Section, pipeline: Section, run_dir: Path, given: list[str], config_dir: str | None
) -> dict[str, Any]:
    """Return the training config of a stage."""
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
                f"stages.{name}.data_from: {declaration(config).name} learns from rows of kind {kind}; an export "
                f"has {' and '.join(_FORMS)}"
            )
        config["data"]["train"] = str(run_dir / stage["data_from"] / f"{_FORMS[kind]}.jsonl")
    return config


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
    """Return a value in Hydra's grammar: text in its quotes; for everything else JSON is valid."""
    if isinstance(value, str | Path):
        return quoted(str(value))
    return re.sub(r'"(\w+)": ', r"\1: ", json.dumps(value, ensure_ascii=False))
