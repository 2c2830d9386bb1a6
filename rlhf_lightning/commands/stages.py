"""The stages of a pipeline as training configs: each is an experiment with its overrides and earlier run folders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typing_extensions import get_type_hints

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.schema import Stage
from rlhf_lightning.config.spelling import did_you_mean, keys_under, nearest
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.pipeline import StageConfig
from rlhf_lightning.runs.quoting import quoted

_STAGE_OVERRIDE = re.compile(r"^(\+\+|\+|~)?stages\.([\w-]+)\.(.+)$", re.DOTALL)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Overrides of the pipeline itself, and those of each stage's training config with the prefix taken off.

    >>> split_overrides(["seed=1", "stages.ppo.algorithm.kl.target=3", "stages.ppo.experiment=mine"])
    (['seed=1', '++stages.ppo.experiment=mine'], {'ppo': ['algorithm.kl.target=3']})
    """
    own: list[str] = []
    of_stages: dict[str, list[str]] = {}
    for override in overrides:
        match = _STAGE_OVERRIDE.match(override)
        if match is None:
            own.append(override)
        elif re.split(r"[.=]", match[3])[0] in get_type_hints(Stage):
            own.append(override if match[1] else f"++{override}")  # the pipeline's file may leave it out
        else:
            of_stages.setdefault(match[2], []).append(f"{match[1] or ''}{match[3]}")
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
    for name in of_stages:
        if name not in names:
            match = did_you_mean(nearest(name, names))
            raise UserError(f"stages.{name}: no such stage; allowed: {', '.join(names)}{match}")
    stages = []
    for i, name in enumerate(names):
        stage = pipeline["stages"][name]
        for key in ("model_from", "reward_from"):
            if stage.get(key) is not None and stage[key] not in names[:i]:
                allowed = ", ".join(names[:i]) or "none, this is the first"
                raise UserError(f'stages.{name}.{key}: found "{stage[key]}"; allowed: an earlier stage ({allowed})')
        given = [
            *(stage.get("overrides") or {}),
            *(re.split("=", each)[0].lstrip("+") for each in of_stages.get(name, [])),
        ]
        for key, model in (("model_from", "model.path"), ("reward_from", "reward.model")):
            if stage.get(key) and model in given:
                raise UserError(
                    f"stages.{name}.{model}: the stage takes the model of {key}={stage[key]}; set one of the two "
                    f"(stages.{name}.{key}=null)"
                )
        overrides = _overrides(name, stage, pipeline, run_dir) + list(of_stages.get(name, []))
        with keys_under(f"stages.{name}."):
            config = compose_config("train", overrides, config_dir)
        if not any(re.match(r"\W*logger\b", override) for override in overrides):
            config["logger"] = pipeline["logger"]
        stages.append(StageConfig(name, config, stage.get("model_from")))
    return stages


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
