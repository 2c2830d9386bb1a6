"""The evaluation after a pipeline's stages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.config.evaluation_checks import policy_stages
from rlhf_lightning.runs.pipeline import Pipeline
from rlhf_lightning.runs.run_folder import read_json_lines
from rlhf_lightning.stopping import held


def gold_reward(settings: Mapping[str, Any]) -> Any:
    """Return the reward function that an evaluation scores with; None without one. Raises UserError."""
    from rlhf_lightning.rewards import FunctionReward

    if not settings["gold"]:
        return None
    return FunctionReward(settings["gold"], "evaluation.gold", settings["timeout"], "evaluation.timeout")


def evaluate(pipeline: Pipeline) -> list[Path]:
    """Compare the existing policies, add the metrics to the summary, print the table and write the report."""
    settings, folder = pipeline.config["evaluation"], pipeline.folder
    if settings["prompts"] is None:
        return []
    ended = [stage.name for stage in pipeline.ended]
    from rlhf_lightning.evaluation import evaluate_policies, terminal_table, write_report
    from rlhf_lightning.process.printing import Terminal

    loading = {key: settings[key] for key in ("dtype", "attn_implementation")}
    evaluation = evaluate_policies(
        policies={name: folder / name for name in policy_stages(pipeline) if name in ended},
        prompts_file=settings["prompts"],
        baseline=settings["baseline"],
        reference=folder / settings["reference"] if settings["reference"] else None,
        gold=gold_reward(settings),
        proxy=_proxy(pipeline, loading),
        every_pair=settings["every_pair"],
        **{key: settings[key] for key in ("samples_per_prompt", "max_new_tokens", "temperature", "batch_size")},
        seed=pipeline.config["seed"],
        **loading,
    )
    pipeline.summary |= {**evaluation.flat(), **_ceilings(pipeline)}
    histories = {stage.name: read_json_lines(stage.folder / "metrics.jsonl") for stage in pipeline.to_run}
    Terminal().print(terminal_table(evaluation))
    numbers = {key: value for key, value in pipeline.summary.items() if isinstance(value, int | float)}
    with held():
        files = write_report(folder, evaluation, histories, pipeline.name, summary=numbers)
        return [*files, *_write_rounds(pipeline, evaluation)]


def _proxy(pipeline: Pipeline, loading: Mapping[str, Any]) -> Any:
    """Return the reward model, or the ensemble, of the stage that is named as proxy; None until it has ended."""
    from rlhf_lightning.rewards import make_reward

    stages = [stage for stage in pipeline.to_run if pipeline.config["evaluation"]["proxy"] in stage.names]
    folders = [str(stage.folder) for stage in stages]
    if not stages or any(stage not in pipeline.ended for stage in stages):
        return None
    return make_reward(**({"model": folders[0]} if len(folders) == 1 else {"models": folders}), **loading)


def _write_rounds(pipeline: Pipeline, evaluation: Any) -> list[Path]:
    """Write the metrics and the plot over rounds, if there are any."""
    config = pipeline.config
    if not config["rounds"] or not config["round"]:
        return []
    from rlhf_lightning.evaluation.rounds import mean_intervals, of_stage, round_rows, write_rounds

    pipeline.summary |= mean_intervals(evaluation)
    rows = round_rows(pipeline.summary, list(config["round"]), config["rounds"])
    return write_rounds(pipeline.folder, rows, of_stage(pipeline.summary, evaluation.baseline), pipeline.name)


def _ceilings(pipeline: Pipeline) -> dict[str, float]:
    """Return the best accuracy any model can be expected to reach, for stages whose held-out rows say what it is."""
    from rlhf_lightning.evaluation import bayes_accuracy

    rows = {name: stage.config["data"] for stage in pipeline.to_run if stage.trains for name in stage.names}
    found = {name: bayes_accuracy(data.get("val"), data.get("limit")) for name, data in rows.items()}
    return {f"{name}.bayes_accuracy": ceiling for name, ceiling in found.items() if ceiling is not None}
