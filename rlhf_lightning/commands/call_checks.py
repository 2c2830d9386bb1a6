"""Checks of a pipeline's stages that call a function, before the first stage runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlhf_lightning.config.inputs import (
    check_model,
    check_no_split_of_a_file,
    missing_locally,
    refuse_reward_model,
    will_be_made,
)
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.pipeline import StageConfig

_COLLECT = "rlhf_lightning.feedback.collect"
_EXPORT = "rlhf_lightning.feedback.export_judgements"
_LABEL = (
    "rlhf_lightning.feedback.wait_for_people",
    "rlhf_lightning.feedback.label_by_judge",
    "rlhf_lightning.simulation.label_by_simulation",
)


def check_call(config: Mapping[str, Any], made: Collection[str]) -> None:
    """Raise UserError for a file that a call reads and that is missing, or for settings that do not fit together.

    Args:
        config: of a stage that calls a function.
        made: folders that will exist by then, because an earlier stage or `prepare` creates them.
    """
    call = config["call"]
    for key in ("prompts", "constitution", "guidelines"):
        path = call.get(key)
        if isinstance(path, str) and not will_be_made({}, path, made):
            if missing_locally(path):
                raise UserError(f"call.{key}: {path} does not exist")
            check_no_split_of_a_file(f"call.{key}", path)
    if call["_target_"] == _COLLECT:
        _check_choice(call)
    if call["_target_"] == _EXPORT and call.get("margin") and call.get("rankings"):
        raise UserError("call.margin: found true, but rankings have no margin; set call.rankings or this to false")


def _check_choice(call: Mapping[str, Any]) -> None:
    from rlhf_lightning.feedback.tasks import SCORED

    choice, scores = call.get("choice", "random"), call.get("reward_model")
    if choice in SCORED and not scores:
        raise UserError(
            f"call.choice: {choice} needs scores of the responses; give reward_from=<an earlier stage that trains a "
            "reward model>, or choice=random"
        )
    if choice not in SCORED and scores:
        raise UserError(f"call.choice: {choice} uses no scores; choose one of {', '.join(SCORED)}, or no reward_from")


def check_order(stages: Sequence[StageConfig]) -> None:
    """Raise UserError for a stage that labels tasks, or exports judgements, of a store that nothing fills before it.

    A store that exists may have them already, and a function of the user's own may add anything. Neither is a store
    accepted whose URL or driver is wrong.
    """
    stores = [each.config["call"]["store"] for each in stages if _target(each) in (_COLLECT, _EXPORT, *_LABEL)]
    if not stores:
        return
    from rlhf_lightning.feedback.connection import check_url, is_there

    for url in dict.fromkeys(stores):
        check_url(url)
    filled: dict[str, set[str]] = {}
    for stage in stages:
        target, store = _target(stage), str((stage.config.get("call") or {}).get("store"))
        before = filled.setdefault(store, set())
        if target in (_EXPORT, *_LABEL) and not is_there(store):
            if not before:
                raise UserError(f"{stage.key}call.store: no stage before it collects tasks in {store}")
            if target == _EXPORT and before <= {_COLLECT}:
                raise UserError(f"{stage.key}call.store: no stage before it labels the tasks in {store}")
        if not stage.trains and target != _EXPORT:
            filled[store] = before | {target}


def check_baselines(stages: Sequence[StageConfig]) -> None:
    """Raise UserError for a baseline that cannot answer: neither an earlier stage nor a folder gives such a policy."""
    from rlhf_lightning.feedback.rounds import check_baseline

    folders = [os.path.realpath(stage.folder) for stage in stages]
    for number, stage in enumerate(stages):
        call = stage.config.get("call") or {}
        baseline, key = call.get("baseline"), f"{stage.key}call.baseline"
        if _target(stage) != _COLLECT or not baseline:
            continue
        folder = os.path.realpath(baseline)
        if folder not in folders:
            check_model(key, baseline)
            refuse_reward_model(key, baseline)
        elif folder not in folders[:number]:
            raise UserError(f"{key}: found {baseline}, which this stage or a later one makes; give an earlier policy")
        elif not stages[folders.index(folder)].gives_policy:
            raise UserError(f"{key}: found {baseline}, of a stage that trains no policy; give one that does")
        check_baseline(call["model"], baseline, call.get("samples_per_prompt", 4), f"{stage.key}call.")


def _target(stage: StageConfig) -> str:
    return str((stage.config.get("call") or {}).get("_target_"))
