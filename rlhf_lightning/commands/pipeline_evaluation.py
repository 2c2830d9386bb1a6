"""The evaluation after a pipeline's stages: what can be wrong with it before they run, and the comparison itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.config.checks import check_no_split_of_a_file, missing_locally, will_be_made
from rlhf_lightning.config.effects import check_samples
from rlhf_lightning.config.source_lookup import check_function
from rlhf_lightning.config.spelling import did_you_mean, nearest
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.runs.run_folder import read_json_lines
from rlhf_lightning.stopping import held


def check_settings(settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise UserError for settings of an evaluation that will not be, or that contradict each other."""
    check_samples(settings, "evaluation.")
    given = [each for each in overrides if each.lstrip("+").startswith("evaluation.")]
    if settings["prompts"] is None and given and not given[0].startswith("evaluation.prompts"):
        raise UserError(f"{given[0]}: nothing is evaluated; give evaluation.prompts, or leave it out")


def check_evaluation(pipeline: Pipeline) -> None:
    """Raise UserError where it names a stage that is not there or cannot do this, or reads what nobody makes."""
    evaluation = pipeline.config["evaluation"]
    if evaluation["prompts"] is None:
        return
    for name in evaluation["policies"] or []:
        check_name("evaluation.policies", name, [stage.name for stage in pipeline.to_run if stage.gives_policy])
    for key in ("baseline", "reference"):
        check_name(f"evaluation.{key}", evaluation[key], policy_stages(pipeline))
    scorers = [stage.name for stage in pipeline.to_run if stage.scores]
    check_name("evaluation.proxy", evaluation["proxy"], scorers)
    _check_prompts(pipeline, evaluation["prompts"])
    check_function("evaluation.gold", evaluation["gold"])


def _check_prompts(pipeline: Pipeline, prompts: str) -> None:
    """Raise UserError if the prompts are not there and no stage or `prepare` makes them."""
    if will_be_made(pipeline.config, prompts, [str(pipeline.folder / stage.name) for stage in pipeline.to_run]):
        return
    if missing_locally(prompts):
        raise UserError(f"evaluation.prompts: {prompts} does not exist")
    check_no_split_of_a_file("evaluation.prompts", prompts)


def check_name(key: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        match = did_you_mean(nearest(value, allowed))
        raise UserError(f'{key}: found "{value}"; allowed: a stage ({", ".join(allowed)}){match}')


def policy_stages(pipeline: Pipeline) -> list[str]:
    """The stages to compare: those named, or all that train a policy rather than a reward model."""
    chosen: list[str] | None = pipeline.config["evaluation"]["policies"]
    return chosen or [stage.name for stage in pipeline.to_run if stage.gives_policy]


def gold_reward(settings: Mapping[str, Any]) -> Any:
    """The reward function that an evaluation scores with, None without one. Raises UserError."""
    from rlhf_lightning.rewards import FunctionReward

    if not settings["gold"]:
        return None
    return FunctionReward(settings["gold"], "evaluation.gold", settings["timeout"], "evaluation.timeout")


def evaluate(pipeline: Pipeline) -> list[Path]:
    """Compare the policies that there are, add the figures to the summary, print the table and write the report."""
    settings, folder = pipeline.config["evaluation"], pipeline.folder
    if settings["prompts"] is None:
        return []
    ended = [stage.name for stage in pipeline.ended]
    proxy = settings["proxy"] if settings["proxy"] in ended else None
    from rich.console import Console

    from rlhf_lightning.evaluation import evaluate_policies, terminal_table, write_report
    from rlhf_lightning.rewards import make_reward

    loading = {key: settings[key] for key in ("dtype", "attn_implementation")}
    evaluation = evaluate_policies(
        policies={name: folder / name for name in policy_stages(pipeline) if name in ended},
        prompts_file=settings["prompts"],
        baseline=settings["baseline"],
        reference=folder / settings["reference"] if settings["reference"] else None,
        gold=gold_reward(settings),
        proxy=make_reward(model=str(folder / proxy), **loading) if proxy else None,
        every_pair=settings["every_pair"],
        **{key: settings[key] for key in ("samples_per_prompt", "max_new_tokens", "temperature", "batch_size")},
        seed=pipeline.config["seed"],
        **loading,
    )
    pipeline.summary |= {**evaluation.flat(), **_ceilings(pipeline)}
    histories = {stage.name: read_json_lines(stage.folder / "metrics.jsonl") for stage in pipeline.to_run}
    Console().print(terminal_table(evaluation))
    numbers = {key: value for key, value in pipeline.summary.items() if isinstance(value, int | float)}
    with held():
        files = write_report(folder, evaluation, histories, pipeline.name, summary=numbers)
        return [*files, *_write_rounds(pipeline, evaluation)]


def _write_rounds(pipeline: Pipeline, evaluation: Any) -> list[Path]:
    """The figures and the plot over rounds, where there are any."""
    config = pipeline.config
    if not config["rounds"] or not config["round"]:
        return []
    from rlhf_lightning.evaluation.rounds import mean_intervals, of_stage, round_rows, write_rounds

    pipeline.summary |= mean_intervals(evaluation)
    rows = round_rows(pipeline.summary, list(config["round"]), config["rounds"])
    return write_rounds(pipeline.folder, rows, of_stage(pipeline.summary, evaluation.baseline), pipeline.name)


def _ceilings(pipeline: Pipeline) -> dict[str, float]:
    """The accuracy that no model can be expected to beat, of the stages whose held-out rows say what it is."""
    from rlhf_lightning.evaluation import bayes_accuracy

    rows = {stage.name: stage.config["data"] for stage in pipeline.to_run if stage.trains}
    found = {name: bayes_accuracy(data.get("val"), data.get("limit")) for name, data in rows.items()}
    return {f"{name}.bayes_accuracy": ceiling for name, ceiling in found.items() if ceiling is not None}
