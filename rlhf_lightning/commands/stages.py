"""The stages of a pipeline as training configs: each is an experiment with its overrides and earlier run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.spelling import keys_under
from rlhf_lightning.config.stage_overrides import check_names
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.calls import call_config
from rlhf_lightning.runs.members import member_names
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
    members = {name: member_names(name, pipeline["stages"][name].get("members")) for name in names}
    _check_members(members)
    check_names(of_stages, list(dict.fromkeys([*names, *chain(*members.values())])), bases)
    stages: list[StageConfig] = []
    for i, name in enumerate(names):
        policies = [each.name for each in stages if each.gives_policy]
        stage = with_policy(name, pipeline["stages"][name], policies)
        _check_earlier(name, stage, names[:i], members)
        given = [*of_stages.get(bases.get(name, ""), []), *of_stages.get(name, [])]
        if len(members[name]) > 1:
            _check_ensemble(name, stage, given)
        for number, member in enumerate(members[name]):
            own = of_stages.get(member, []) if member != name else []
            written, seeded = _with_ensembles(stage, members), {**pipeline, "seed": pipeline["seed"] + number}
            config = _composed(member, written, seeded, run_dir, [*given, *own], config_dir)
            _check_kinds(name, stage, config, {key: each for each in stages for key in each.names})
            stages.append(StageConfig(member, config, stage.get("model_from"), name if member != name else ""))
    return stages


def _composed(
    name: str, stage: Section, pipeline: Section, run_dir: Path, given: list[str], config_dir: str | None
) -> dict[str, Any]:
    """Return the config of a stage, or of one member of it."""
    if not stage.get("call"):
        return _training(name, stage, pipeline, run_dir, given, config_dir)
    if given:
        raise UserError(f"stages.{name}: it calls a function, whose arguments are stages.{name}.call.<key>")
    return call_config(name, stage, pipeline["name"], run_dir)


def _check_earlier(name: str, stage: Section, before: Sequence[str], members: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for a stage that begins from what is not an earlier stage, or a member of one."""
    for key in _GIVEN:
        if stage.get(key) is not None and stage[key] not in chain(before, *(members[each] for each in before)):
            allowed = ", ".join(before) or "none, this is the first"
            raise UserError(f'stages.{name}.{key}: found "{stage[key]}"; must be an earlier stage ({allowed})')


def _check_members(members: Mapping[str, Sequence[str]]) -> None:
    """Raise UserError for a member that has the name of another stage."""
    for name, each in members.items():
        if taken := [member for member in each if member != name and member in members]:
            raise UserError(f"stages.{name}.members: stages.{taken[0]} has the name of a member; choose another one")


def _check_ensemble(name: str, stage: Section, given: Sequence[str]) -> None:
    """Raise UserError for members that would all be the same, or that train no model."""
    if stage.get("call"):
        raise UserError(f"stages.{name}.members: found {stage['members']}, but the stage calls a function")
    if "seed" in _set_in(stage, given):
        raise UserError(
            f"stages.{name}.seed: all {stage['members']} members would be the same; set the pipeline's seed, from "
            "which theirs count up, or members=1"
        )


def _with_ensembles(stage: Section, members: Mapping[str, Sequence[str]]) -> Section:
    """Return a stage whose `reward_from` is a list of stages if it is an ensemble."""
    written = dict(stage)
    for key in _GIVEN:
        several = members.get(str(stage.get(key)), [])
        if len(several) > 1:
            written[key] = several if key == "reward_from" else several[0]  # `_check_kinds` refuses the other keys
    return written


def _set_in(stage: Section, given: Sequence[str]) -> list[str]:
    """Return the keys that a stage's file, or the command line, sets in its training config."""
    written = [str(key).lstrip("+") for key in stage.get("overrides") or {}]
    return [*written, *(re.split("=", each)[0].lstrip("+") for each in given)]


def _check_kinds(name: str, stage: Section, config: Section, before: Mapping[str, StageConfig]) -> None:
    """Raise UserError for an earlier stage that does not leave what this one takes from it."""
    key = f"stages.{name}"
    model, reward, data = (before.get(str(stage.get(each))) for each in _GIVEN)
    if model is not None and not model.trains:
        raise UserError(f'{key}.model_from: found "{model.name}", which trains no model; must be a stage that does')
    if model is not None and model.scores and "call" not in config and not declaration(config).scores:
        raise UserError(
            f'{key}.model_from: found "{stage["model_from"]}", a reward model; must be a stage that trains a policy'
        )
    if model is not None and stage["model_from"] == model.stage:
        names = ", ".join(dict.fromkeys(each.name for each in before.values() if each.stage == model.stage))
        raise UserError(f'{key}.model_from: found "{model.stage}", an ensemble; name one of its members ({names})')
    if "call" not in config and stage.get("members", 1) > 1 and not declaration(config).scores:
        raise UserError(f"{key}.members: found {stage['members']}; only reward models form an ensemble")
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
    set_here = _set_in(stage, given)
    for key, taken in _GIVEN.items():
        twice = [each for each in (taken, f"{taken}s") if each in set_here]
        if stage.get(key) and twice:
            what, given_by = "rows" if key == "data_from" else "model", stage[key]
            given_by = f"[{', '.join(given_by)}]" if isinstance(given_by, list) else given_by
            raise UserError(
                f"stages.{name}.{twice[0]}: the stage takes the {what} of {key}={given_by}; set one of the two "
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
    if isinstance(reward := stage.get("reward_from"), list):
        members = ",".join(_quoted(run_dir / member) for member in reward)
        overrides += ["reward.model=null", f"reward.models=[{members}]"]
    elif reward:
        overrides.append(f"reward.model={_quoted(run_dir / reward)}")
    return overrides + [f"{key}={_quoted(value)}" for key, value in (stage.get("overrides") or {}).items()]


def _quoted(value: Any) -> str:
    """Return a value in Hydra's grammar: text in its quotes; for everything else JSON is valid."""
    if isinstance(value, str | Path):
        return quoted(str(value))
    return re.sub(r'"(\w+)": ', r"\1: ", json.dumps(value, ensure_ascii=False))
