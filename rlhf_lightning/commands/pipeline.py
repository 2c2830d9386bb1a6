"""rlhf-pipeline: stages as one composed config, all checked before the first one runs, then an evaluation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.after_training import Aftermath
from rlhf_lightning.commands.arithmetic import explain
from rlhf_lightning.commands.checks import (
    check_hashes,
    check_inputs,
    check_no_split_of_a_file,
    missing_locally,
    will_be_made,
)
from rlhf_lightning.commands.command_line import is_plain, read_arguments, run_command
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.devices import check_devices
from rlhf_lightning.commands.effects import check_samples
from rlhf_lightning.commands.folder_lock import check_run_dir
from rlhf_lightning.commands.going_on import Progress
from rlhf_lightning.commands.help import options, pipeline_help
from rlhf_lightning.commands.ranks import first_process
from rlhf_lightning.commands.run_folder import (
    choose_run_dir,
    read_json_lines,
    read_summary,
    write_config,
    write_summary,
)
from rlhf_lightning.commands.schema import Pipeline
from rlhf_lightning.commands.source_lookup import check_function
from rlhf_lightning.commands.spelling import did_you_mean, keys_under, nearest
from rlhf_lightning.commands.stages import StageConfig, compose_stages, split_overrides
from rlhf_lightning.commands.store_check import check_tracking
from rlhf_lightning.commands.thread_caches import restart_without_thread_caches
from rlhf_lightning.commands.tracking import PipelineRun, uses_mlflow
from rlhf_lightning.commands.train import check, print_end, report_problems, run, saying_how_to_go_on
from rlhf_lightning.commands.validation import MISSING, validate
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.declarations import declaration
from rlhf_lightning.stopping import advising, held, signal_of


def main() -> None:
    """The entry point of rlhf-pipeline."""
    restart_without_thread_caches("rlhf-pipeline")
    run_command(_main)


def _main() -> None:
    arguments = read_arguments("rlhf-pipeline")
    if arguments.help:
        print(pipeline_help(arguments.config_dir))
        return
    if not is_plain(arguments):
        raise UserError("rlhf-pipeline takes overrides, --config-dir and --help only; sweeps: rlhf-train -m")
    own, of_stages = split_overrides(arguments.overrides)
    pipeline = compose_config("pipeline", own, arguments.config_dir)
    if pipeline["stages"] == MISSING:
        raise UserError(f"pipeline: missing; give pipeline={' | '.join(options('pipeline', arguments.config_dir))}")
    validate(pipeline, Pipeline)
    _check_evaluation(pipeline["evaluation"], own)
    run_dir = choose_run_dir(pipeline)
    stages = compose_stages(pipeline, run_dir, of_stages, arguments.config_dir)
    check_pipeline(pipeline, run_dir, stages)
    if pipeline["explain"]:
        print("\n\n".join(explain(stage.config) for stage in stages))
        return
    run_pipeline(pipeline, run_dir, stages)


def check_pipeline(pipeline: Mapping[str, Any], run_dir: Path, stages: Sequence[StageConfig]) -> None:
    """Everything that can be known to be wrong before the first stage, of all stages.

    Raises:
        UserError: one line about the first thing.
    """
    names = [stage.name for stage in stages]
    made = [str(run_dir / name) for name in names]
    for stage in stages:
        check(stage.config, f"stages.{stage.name}.")
        with keys_under(f"stages.{stage.name}."):
            check_inputs(stage.config, made)
    _check_name("from", pipeline.get("from"), names)
    for name in skipped_stages(pipeline, names):
        if not (run_dir / name / "summary.json").is_file():
            raise UserError(f"from: stage {name} has not ended in {run_dir} (no summary.json); start with from={name}")
        read_summary(run_dir / name)
        check_hashes("from", str(run_dir / name))
    if pipeline["evaluation"]["prompts"] is not None:
        _check_evaluated(pipeline, stages)
        _check_prompts(pipeline, made)
        check_function("evaluation.gold", pipeline["evaluation"]["gold"])


def _check_evaluated(pipeline: Mapping[str, Any], stages: Sequence[StageConfig]) -> None:
    """Raise UserError where the evaluation names a stage that is not there, or that cannot do what it is named for."""
    evaluation = pipeline["evaluation"]
    for name in evaluation["policies"] or []:
        _check_name("evaluation.policies", name, [stage.name for stage in stages if not _scores(stage)])
    for key in ("baseline", "reference"):
        _check_name(f"evaluation.{key}", evaluation[key], policy_stages(pipeline, stages))
    scorers = [stage.name for stage in stages if _scores(stage)]
    _check_name("evaluation.proxy", evaluation["proxy"], scorers)


def _check_prompts(pipeline: Mapping[str, Any], made: Sequence[str]) -> None:
    """Raise UserError if the evaluation's prompts are not there and no stage or `prepare` makes them."""
    prompts = pipeline["evaluation"]["prompts"]
    if will_be_made(pipeline, prompts, made):
        return
    if missing_locally(prompts):
        raise UserError(f"evaluation.prompts: {prompts} does not exist")
    check_no_split_of_a_file("evaluation.prompts", prompts)


def check_functions(pipeline: Mapping[str, Any], stages: Sequence[StageConfig]) -> None:
    """Import every reward function that a stage or the evaluation will call, before anything is trained.

    Raises:
        UserError: one that is missing, or that cannot be called as a reward.
    """
    from rlhf_lightning.rewards import FunctionReward

    if (gold := pipeline["evaluation"]["gold"]) and pipeline["evaluation"]["prompts"] is not None:
        FunctionReward(gold, "evaluation.gold")
    for stage in stages:
        reward = stage.config.get("reward") or {}
        parts = {"": reward} | {f".components.{name}": part for name, part in (reward.get("components") or {}).items()}
        for key, part in parts.items():
            if function := part.get("function"):
                FunctionReward(function, f"stages.{stage.name}.reward{key}.function")


def _check_evaluation(settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Raise UserError for settings of an evaluation that will not be, or that contradict each other."""
    check_samples(settings, "evaluation.")
    given = [each for each in overrides if each.lstrip("+").startswith("evaluation.")]
    if settings["prompts"] is None and given and not given[0].startswith("evaluation.prompts"):
        raise UserError(f"{given[0]}: nothing is evaluated; give evaluation.prompts, or leave it out")


def _check_name(key: str, value: str | None, allowed: Sequence[str]) -> None:
    if value is not None and value not in allowed:
        match = did_you_mean(nearest(value, allowed))
        raise UserError(f'{key}: found "{value}"; allowed: a stage ({", ".join(allowed)}){match}')


def skipped_stages(pipeline: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The stages before `from`."""
    return list(names[: names.index(pipeline["from"])]) if pipeline.get("from") else []


def policy_stages(pipeline: Mapping[str, Any], stages: Sequence[StageConfig]) -> list[str]:
    """The stages to compare: those named, or all that train a policy rather than a reward model."""
    chosen = pipeline["evaluation"]["policies"]
    return chosen or [stage.name for stage in stages if not _scores(stage)]


def _scores(stage: StageConfig) -> bool:
    """Whether a stage trains a reward model."""
    return declaration(stage.config).scores


def run_pipeline(pipeline: Mapping[str, Any], run_dir: Path, stages: Sequence[StageConfig]) -> dict[str, Any]:
    """Run the stages in this process, evaluate, and write summary.json and the report. Returns the summary."""
    progress = Progress(run_dir, stages)
    with advising(progress.advice), saying_how_to_go_on(progress.advice):
        return _run_pipeline(pipeline, run_dir, stages, progress)


def _run_pipeline(
    pipeline: Mapping[str, Any], run_dir: Path, stages: Sequence[StageConfig], progress: Progress
) -> dict[str, Any]:
    started = time.monotonic()
    if first_process():
        check_run_dir(run_dir)
    for stage in stages:
        with keys_under(f"stages.{stage.name}."):
            check_devices(stage.config["trainer"])

    from rlhf_lightning.commands.build import prepare
    from rlhf_lightning.commands.rehearsal import rehearse_evaluation, rehearse_inputs, rehearse_objects
    from rlhf_lightning.commands.run_start import StartRun

    skipped = skipped_stages(pipeline, [stage.name for stage in stages])
    check_functions(pipeline, stages)
    ahead = [stage for stage in stages if stage.name not in skipped] if first_process() else []
    for stage in ahead:
        with keys_under(f"stages.{stage.name}."):
            rehearse_objects(stage.config)
    prepare(pipeline)
    made: dict[str, Any] = dict.fromkeys(str(stage.folder) for stage in ahead)
    for stage in ahead:
        with keys_under(f"stages.{stage.name}."):
            made[str(stage.folder)] = rehearse_inputs(stage.config, made)
    if first_process():
        rehearse_evaluation(pipeline["evaluation"]["prompts"], made)
    parent = _parent_run(pipeline, run_dir, stages)
    begin = StartRun(lambda: _take_over(pipeline, run_dir, stages, parent))
    summary: dict[str, Any] = {"seed": pipeline["seed"]}
    problems: dict[Path, Sequence[str]] = {}
    try:
        for stage in stages:
            if stage.name in skipped:
                results = read_summary(stage.folder)
            else:
                _announce(stage)
                result = run(stage.config, parent, begin, progress.begin())
                results = result.summary
                if result.problems:
                    problems[stage.folder] = result.problems
            progress.end()
            summary |= {f"{stage.name}.{key}": value for key, value in stage_metrics(results, stage.config).items()}
        if not first_process():
            return summary
        files = _evaluate(pipeline, run_dir, stages, summary)
        summary["wall_seconds"] = round(time.monotonic() - started, 2)
        write_summary(run_dir, summary)
    except BaseException as error:
        if parent:
            parent.fail(stopped=signal_of(error) is not None)
        raise
    aftermath = Aftermath()
    with aftermath.step("the pipeline's run in MLflow"):
        if parent:
            parent.finish(summary, pipeline, [run_dir / "config.yaml", run_dir / "summary.json", *files])
    print_end(run_dir, pipeline, files)
    report_problems(problems | ({run_dir: aftermath.problems} if aftermath.problems else {}))
    return summary


def _take_over(
    pipeline: Mapping[str, Any], run_dir: Path, stages: Sequence[StageConfig], parent: PipelineRun | None
) -> None:
    """Make the folder this pipeline's: its first stage has loaded everything, and begins."""
    write_config(run_dir, {**pipeline, "stages": {stage.name: stage.config for stage in stages}})
    if parent:
        parent.open()


def _announce(stage: StageConfig) -> None:
    if first_process():
        print(
            f"\n{stage.name}: {stage.config['algorithm']['_target_'].rpartition('.')[2]} -> {stage.folder}", flush=True
        )


def stage_metrics(results: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's part of the pipeline's summary: its held-out metrics, and its KL and coefficient, if it samples."""
    metrics = {key.removeprefix("val/"): value for key, value in results.items() if key.startswith("val/")}
    if "wall_seconds" in results:
        metrics["wall_seconds"] = results["wall_seconds"]
    if declaration(config).on_policy:
        given = config["algorithm"].get("kl")
        kl = given if isinstance(given, Mapping) else {}
        metrics |= {
            "kl": results.get("objective/kl"),  # replaced by the evaluation's, on unseen prompts, if there is one
            "train_kl": results.get("objective/kl"),
            "kl_coef": results.get("kl/coef"),
        }
        if kl.get("kind", "fixed") != "fixed":
            metrics["kl_target"] = kl.get("target")
    return metrics


def _parent_run(pipeline: Mapping[str, Any], run_dir: Path, stages: Sequence[StageConfig] = ()) -> PipelineRun | None:
    if not uses_mlflow(pipeline) or not first_process():
        return None
    logger = pipeline["logger"]
    check_tracking(logger["tracking_uri"])
    return PipelineRun(
        logger["tracking_uri"],
        logger.get("experiment_name", "rlhf-lightning"),
        pipeline["name"],
        folder=run_dir,
        goes_on=bool(pipeline.get("from")),
        stages=[stage.folder for stage in stages],
    )


def _gold(settings: Mapping[str, Any]) -> Any:
    from rlhf_lightning.rewards import FunctionReward

    return FunctionReward(settings["gold"], "evaluation.gold", settings["timeout"], "evaluation.timeout")


def _evaluate(
    pipeline: Mapping[str, Any], run_dir: Path, stages: Sequence[StageConfig], summary: dict[str, Any]
) -> list[Path]:
    """Compare the policies, add the figures to the summary, print the table and write the report."""
    settings = pipeline["evaluation"]
    if settings["prompts"] is None:
        return []
    from rich.console import Console

    from rlhf_lightning.evaluation import bayes_accuracy, evaluate_policies, terminal_table, write_report
    from rlhf_lightning.rewards import make_reward

    names = policy_stages(pipeline, stages)
    loading = {key: settings[key] for key in ("dtype", "attn_implementation")}
    evaluation = evaluate_policies(
        policies={name: run_dir / name for name in names},
        prompts_file=settings["prompts"],
        baseline=settings["baseline"],
        reference=run_dir / settings["reference"] if settings["reference"] else None,
        gold=_gold(settings) if settings["gold"] else None,
        proxy=make_reward(model=str(run_dir / settings["proxy"]), **loading) if settings["proxy"] else None,
        samples_per_prompt=settings["samples_per_prompt"],
        max_new_tokens=settings["max_new_tokens"],
        temperature=settings["temperature"],
        batch_size=settings["batch_size"],
        seed=pipeline["seed"],
        **loading,
    )
    summary |= evaluation.flat()
    for stage in stages:
        ceiling = bayes_accuracy(stage.config["data"].get("val"), stage.config["data"].get("limit"))
        summary |= {} if ceiling is None else {f"{stage.name}.bayes_accuracy": ceiling}
    histories = {stage.name: read_json_lines(stage.folder / "metrics.jsonl") for stage in stages}
    Console().print(terminal_table(evaluation))
    numbers = {key: value for key, value in summary.items() if isinstance(value, int | float)}
    with held():
        return write_report(run_dir, evaluation, histories, str(pipeline["name"]), summary=numbers)
