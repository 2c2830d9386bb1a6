"""Checks of a pipeline's evaluation before its stages run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_lightning.config.effects import check_samples
from rlhf_lightning.config.inputs import check_no_split_of_a_file, missing_locally, will_be_made
from rlhf_lightning.config.source_lookup import check_function
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.pipeline import Pipeline


def check_settings(settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise UserError for settings of an evaluation that will not take place, or that contradict each other."""
    check_samples(settings, "evaluation.")
    given = [each for each in overrides if each.lstrip("+").startswith("evaluation.")]
    if settings["prompts"] is None and given and not given[0].startswith("evaluation.prompts"):
        raise UserError(f"{given[0]}: nothing is evaluated; give evaluation.prompts, or leave it out")


def check_evaluation(pipeline: Pipeline) -> None:
    """Raise UserError if it names a stage that does not exist or does not fit, or reads a file that nothing creates."""
    evaluation = pipeline.config["evaluation"]
    if evaluation["prompts"] is None:
        return
    for name in evaluation["policies"] or []:
        check_name("evaluation.policies", name, [stage.name for stage in pipeline.to_run if stage.gives_policy])
    for key in ("baseline", "reference"):
        check_name(f"evaluation.{key}", evaluation[key], policy_stages(pipeline))
    scorers = list(dict.fromkeys(name for stage in pipeline.to_run if stage.scores for name in reversed(stage.names)))
    check_name("evaluation.proxy", evaluation["proxy"], scorers)
    _check_prompts(pipeline, evaluation["prompts"])
    check_function("evaluation.gold", evaluation["gold"])


def _check_prompts(pipeline: Pipeline, prompts: str) -> None:
    """Raise UserError if the prompts are missing and no stage or `prepare` creates them."""
    if will_be_made(pipeline.config, prompts, [str(pipeline.folder / stage.name) for stage in pipeline.to_run]):
        return
    if missing_locally(prompts):
        raise UserError(f"evaluation.prompts: {prompts} does not exist")
    check_no_split_of_a_file("evaluation.prompts", prompts)


def check_name(key: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        match = did_you_mean(nearest(value, allowed))
        raise UserError(f'{key}: found "{value}"; must be a stage ({", ".join(allowed)}){match}')


def policy_stages(pipeline: Pipeline) -> list[str]:
    """Return the stages to compare: those named, or all that train a policy rather than a reward model."""
    chosen: list[str] | None = pipeline.config["evaluation"]["policies"]
    return chosen or [stage.name for stage in pipeline.to_run if stage.gives_policy]
