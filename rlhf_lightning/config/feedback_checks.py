"""Checks of the feedback commands' configs before a store is opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.addresses import check_address
from rlhf_lightning.config.config_files import shipped
from rlhf_lightning.config.feedback_schema import Agreement, Collect, Judge, Label
from rlhf_lightning.config.inputs import (
    check_model,
    check_no_split_of_a_file,
    is_reward_model,
    missing_locally,
    refuse_reward_model,
)
from rlhf_lightning.config.source_lookup import check_function
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.settings import check_judge
from rlhf_lightning.setting_rules import check_distinct, check_reward
from rlhf_lightning.store_url import checked_url, store_file
from rlhf_lightning.value_types import MOST_FLAGS

LONGEST_NAME = 40  # characters of a criterion or a flag
MOST_CRITERIA = 50  # an answer has at most 100 scores, and at least two responses
_OF_ROWS = ("kind", "method", "held_out")
_OF_SAMPLING = ("samples_per_prompt", "max_new_tokens", "max_prompt_length", "temperature", "batch_size")
_OF_MODELS = ("dtype", "attn_implementation")
_PER_PROMPT = ("random", "uncertain")  # choices that make `pairs` tasks of a prompt


def check_agreement(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first problem in a config of rlhf-agreement."""
    validate(config, Agreement)
    imports, exports = config["import"], config["export"]
    if imports and not Path(imports).exists():
        raise UserError(f"import: {imports} does not exist; give the file that Argilla or Label Studio has exported")
    if imports and config["format"] == "rows":
        raise UserError("format: found rows, which cannot be imported; choose format=argilla or format=label_studio")
    _without_effect(config, ("names",), "give import=<file>, or leave it out", unless=imports)
    _without_effect(config, ("format",), "give export=<folder> or import=<file>", unless=imports or exports)
    to_rows = exports and config["format"] == "rows"
    why = "only rows are exported with it; leave it out" if exports else "give export=<folder>, or leave it out"
    _without_effect(config, _OF_ROWS, why, unless=to_rows)
    if exports and Path(exports).is_file():
        raise UserError(f"export: {exports} is a file; give a folder")
    if config["labelers"] == []:
        raise UserError("labelers: found an empty list; name whose judgements count, or give null for everybody's")


def check_judge_command(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first problem in a config of rlhf-judge."""
    validate(config, Judge)
    data, revises = config["data"], config["revise"]
    if data and revises:
        raise UserError("data and revise: only one of the two; a judge compares answers, or revises them")
    check_judge(config["judge"], generates=bool(revises))
    if not config["judge"]["url"]:
        check_model("judge.model", config["judge"]["model"])
        refuse_reward_model("judge.model", config["judge"]["model"])
    for key in ("data", "revise"):
        if config[key] and missing_locally(config[key]):
            raise UserError(f"{key}: {config[key]} does not exist")
        if config[key]:
            check_no_split_of_a_file(key, config[key])
    _without_effect(config, ("revisions",), "give revise=<file>, or leave it out", unless=revises, command="judge")
    why = "nothing is compared with revise; leave it out"
    _without_effect(config, ("tie_below",), why, unless=not revises, command="judge")
    why = "the store is not read with data or revise; leave it out"
    _without_effect(config, ("labeler", "feedback"), why, unless=not (data or revises), command="judge")
    if not data and not revises:
        check_store(config["feedback"]["store"])


def check_store(url: str) -> None:
    """Raise UserError if a store's URL is wrong, or an SQLite store does not exist: opening it would create one."""
    file = store_file(url)
    if file is not None and not file.exists():
        raise UserError(f"feedback.store: {file} does not exist; rlhf-collect makes a store, or give another one")


def _without_effect(
    config: Mapping[str, Any], keys: tuple[str, ...], why: str, unless: Any, command: str = "agreement"
) -> None:
    """Raise UserError for a setting that differs from the shipped value but has no effect."""
    given = shipped(command)
    for key in keys:
        if not unless and config[key] != given[key]:
            raise UserError(f"{key}: it has no effect here; {why}")


def check_collect(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first problem in a config of rlhf-collect."""
    validate(config, Collect)
    _check_sources(config)
    _check_effects(config)
    checked_url(config["feedback"]["store"])
    for key in ("prompts", "responses", "checks"):
        if (file := config.get(key)) is not None:
            if missing_locally(file):
                raise UserError(f"{key}: {file} does not exist")
            check_no_split_of_a_file(key, file)
    for name, place in (config["policies"] or {}).items():
        if _is_server(place):
            check_address(f"policies.{name}", place.partition("#")[0], credentials=True)
        else:
            check_model(f"policies.{name}", place)
            refuse_reward_model(f"policies.{name}", place)
    _check_rewards(config["reward"])


def _check_sources(config: Mapping[str, Any]) -> None:
    if (config.get("prompts") is None) == (config.get("responses") is None):
        found = "both are" if config.get("prompts") is not None else "neither is"
        raise UserError(
            f"prompts, responses: {found} given; give prompts=FILE with policies={{...}}, or responses=FILE whose rows "
            "have responses"
        )
    if config.get("prompts") is not None and not config["policies"]:
        raise UserError("policies: none given; give {name: folder or server, ...}")
    if config.get("responses") is not None and config["policies"]:
        raise UserError(
            "policies: they answer prompts=FILE, and responses=FILE already has responses; leave one of the two out"
        )


def _check_effects(config: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that this collection does not use."""
    sampled = config.get("prompts") is not None
    why = "responses=FILE has its responses already; leave it out"
    _without_effect(config, (*_OF_SAMPLING, *_OF_MODELS), why, unless=sampled, command="collect")
    local = [place for place in (config["policies"] or {}).values() if not _is_server(place)]
    why = "all policies are servers, which take prompts as they are and choose it themselves; leave it out"
    keys = ("max_prompt_length", *_OF_MODELS)
    _without_effect(config, keys, why, unless=local or not sampled, command="collect")
    why = f"choice={config['choice']} makes one task of each prompt; leave it out"
    _without_effect(config, ("pairs",), why, unless=config["choice"] in _PER_PROMPT, command="collect")
    why = "overlap_share=0 gives every task to one labeler; raise that, or leave it out"
    _without_effect(config, ("overlap",), why, unless=config["overlap_share"], command="collect")
    why = "overlap=1 gives every task to one labeler; raise that, or leave it out"
    _without_effect(config, ("overlap_share",), why, unless=config["overlap"] > 1, command="collect")
    reward, given = config["reward"], shipped("collect")["reward"]
    changed = [key for key, value in reward.items() if value != given.get(key)]
    if changed and not rewards_of_pairs(reward):
        raise UserError(f"reward.{changed[0]}: no effect without a reward; give reward.model=..., or leave it out")
    if "batch_size" in changed and not reward.get("model"):
        raise UserError("reward.batch_size: only a reward model scores in batches; leave it out")


def _is_server(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def rewards_of_pairs(reward: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the settings of each reward whose margins select pairs; several models form an ensemble."""
    models = reward.get("model")
    if not models:
        return [dict(reward)] if reward.get("function") else []
    return [{**reward, "model": model} for model in (models if isinstance(models, list) else [models])]


def _check_rewards(reward: Mapping[str, Any]) -> None:
    if isinstance(reward.get("model"), list):
        check_distinct(reward["model"], "reward.model")
    for each in rewards_of_pairs(reward):
        check_reward(each)
        check_function("reward.function", each.get("function"))
        if (model := each.get("model")) is not None:
            check_model("reward.model", model)
            if Path(model).is_dir() and not is_reward_model(Path(model)):
                raise UserError(f"reward.model: {model} is not a reward model; train one with experiment=reward")


def check_label(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first problem in a config of rlhf-label."""
    validate(config, Label)
    for key, most in (("criteria", MOST_CRITERIA), ("flags", MOST_FLAGS)):
        names = config[key]
        if len(names) > most:
            raise UserError(f"{key}: found {len(names)}; an answer has at most {most}; leave some out")
        if wrong := [name for name in names if len(name) > LONGEST_NAME or "\n" in name]:
            raise UserError(f'{key}: found "{wrong[0]}"; must be 1 to {LONGEST_NAME} characters on one line')
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f'{key}: "{twice[0]}" appears twice')
