"""rlhf-pipeline: stages as one composed config, all checked before the first one runs, then an evaluation."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.commands.call_checks import check_baselines, check_call, check_order
from rlhf_lightning.commands.command_line import is_plain, read_arguments, run_command, without_collector
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.guidance import answer
from rlhf_lightning.commands.pipeline_evaluation import evaluate, gold_reward
from rlhf_lightning.commands.stages import compose_stages
from rlhf_lightning.commands.train import carry_out, check, print_end, report_problems, saying_how_to_go_on
from rlhf_lightning.config.arithmetic import explain
from rlhf_lightning.config.devices import check_devices
from rlhf_lightning.config.evaluation_checks import check_evaluation, check_name, check_settings
from rlhf_lightning.config.inputs import check_hashes, check_inputs
from rlhf_lightning.config.schema import Pipeline as PipelineSchema
from rlhf_lightning.config.spelling import keys_under
from rlhf_lightning.config.stage_overrides import split_overrides
from rlhf_lightning.config.validation import MISSING, validate
from rlhf_lightning.errors import UserError, WaitingError
from rlhf_lightning.guide.composed import options
from rlhf_lightning.runs.after_training import Aftermath
from rlhf_lightning.runs.calls import CalledRun
from rlhf_lightning.runs.command_words import carrying_out
from rlhf_lightning.runs.members import with_ensemble
from rlhf_lightning.runs.next_steps import next_steps_of_pipeline
from rlhf_lightning.runs.pipeline import Pipeline, StageConfig, stage_metrics, take_up
from rlhf_lightning.runs.places import check_place
from rlhf_lightning.runs.ranks import first_process
from rlhf_lightning.runs.rounds import stages_of_rounds, with_rounds
from rlhf_lightning.runs.run_folder import choose_run_dir, read_summary
from rlhf_lightning.stopping import advising
from rlhf_lightning.tracking.pipeline_tracking import tracked


def main() -> None:
    """Run rlhf-pipeline."""
    run_command(_main)


def _main() -> None:
    arguments = read_arguments("rlhf-pipeline")
    if (said := answer("rlhf-pipeline", arguments)) is not None:
        print(said)
        return
    if not is_plain(arguments):
        raise UserError("rlhf-pipeline takes overrides, --config-dir and --help only; sweeps: rlhf-train -m")
    with without_collector():
        pipeline = compose_pipeline(arguments.overrides, arguments.config_dir)
        check_pipeline(pipeline)
    if pipeline.config["explain"]:
        print("\n\n".join(explain(stage.config) for stage in pipeline.to_run if stage.trains))
        return
    with carrying_out("rlhf-pipeline", arguments.overrides):
        run_pipeline(pipeline)


def compose_pipeline(overrides: list[str], config_dir: str | None = None) -> Pipeline:
    """Return the pipeline of a command line, with its folder and its stages. Raises UserError."""
    own, of_stages = split_overrides(overrides)
    config = compose_config("pipeline", own, config_dir)
    if config["stages"] == MISSING:
        raise UserError(f"pipeline: missing; give pipeline={' | '.join(options('pipeline', config_dir))}")
    of_rounds = {name for _, _, name in stages_of_rounds(config)}
    written = {name: stage for name, stage in config["stages"].items() if name not in of_rounds}
    validate({**config, "stages": written}, PipelineSchema)
    check_settings(config["evaluation"], own)
    config = with_rounds(config)
    validate({**config, "round": {}}, PipelineSchema)
    folder = choose_run_dir(config)
    pipeline = Pipeline(config, folder, compose_stages(config, folder, of_stages, config_dir))
    if config["go_on"] and not config["from"]:
        take_up(pipeline)
    return pipeline


def check_pipeline(pipeline: Pipeline) -> None:
    """Check everything that can be checked, in all stages, before the first one runs.

    Raises:
        UserError: one line about the first problem.
    """
    folder = pipeline.folder
    check_name("from", pipeline.config.get("from"), pipeline.names)
    for stage in pipeline.to_run:
        if stage.trains:
            check(stage.config, stage.key)
        with keys_under(stage.key):
            (check_inputs if stage.trains else check_call)(stage.config, made(pipeline))
    check_order(pipeline.to_run)
    check_baselines(pipeline.to_run)
    for stage in pipeline.skipped:
        name = stage.name
        if not (folder / name / "summary.json").is_file():
            raise UserError(f"from: stage {name} has not ended in {folder} (no summary.json); start with from={name}")
        read_summary(folder / name)
        if stage.trains:
            check_hashes("from", str(folder / name))
    check_evaluation(pipeline)


def made(pipeline: Pipeline) -> list[str]:
    """Return the folders that the stages and `prepare` create."""
    prepared = (pipeline.config.get("prepare") or {}).get("folder")
    return [*(str(stage.folder) for stage in pipeline.to_run), *([str(prepared)] if prepared else [])]


def run_pipeline(pipeline: Pipeline) -> dict[str, Any]:
    """Run the stages in this process, evaluate, and write summary.json and the report. Return the summary."""
    with advising(pipeline.advice), saying_how_to_go_on(pipeline.advice):
        rehearse(pipeline)
        pipeline.summary = {"seed": pipeline.config["seed"]}
        with tracked(pipeline) as tracking:
            try:
                _run_stages(pipeline)
            except WaitingError as waiting:
                if any(run.declaration.roles[0] == "policy" for run in pipeline.runs if "call" not in run.config):
                    evaluate(pipeline)  # its settings may have changed since the last stop
                raise WaitingError(f"{waiting}; then go on with {pipeline.same_command}") from waiting
            if not first_process():
                return pipeline.summary
            files = evaluate(pipeline)
            pipeline.summary["wall_seconds"] = pipeline.seconds()
            pipeline.end()
        aftermath = Aftermath()
        with aftermath.step("the pipeline's run in MLflow"):
            if tracking is not None:
                written = [pipeline.folder / name for name in ("config.yaml", "summary.json")]
                tracking.finish(pipeline.summary, [*written, *files])
        pipeline.problems = aftermath.problems
        folders = [stage.folder for stage in pipeline.to_run if stage.trains]
        print_end(pipeline, next_steps_of_pipeline(folders), files)
        report_problems([*pipeline.runs, pipeline])
    return pipeline.summary


def _run_stages(pipeline: Pipeline) -> None:
    for stage in pipeline.to_run:
        results = _results(pipeline, stage)
        figures = stage_metrics(results, stage.config) if stage.trains else results
        pipeline.summary |= {f"{stage.name}.{key}": value for key, value in figures.items()}
        if stage.stage:
            members = [each.name for each in pipeline.ended if each.stage == stage.stage]
            pipeline.summary = with_ensemble(pipeline.summary, stage.stage, members)


def rehearse(pipeline: Pipeline) -> None:
    """Find out, before the first stage, what would go wrong in a later one. Raises UserError."""
    if first_process():
        check_place(pipeline.folder, pipeline.config)
    for stage in pipeline.to_run:
        if first_process() and stage in pipeline.ahead:
            check_place(stage.folder, stage.config)
        with keys_under(stage.key):
            if stage.trains:
                check_devices(stage.config["trainer"])

    from rlhf_lightning.commands.build import prepare
    from rlhf_lightning.commands.rehearsal import (
        rehearse_evaluation,
        rehearse_inputs,
        rehearse_objects,
        rehearse_sections,
    )

    evaluation, ahead = pipeline.config["evaluation"], pipeline.ahead if first_process() else []
    if evaluation["prompts"] is not None:
        gold_reward(evaluation)
    for stage in ahead:
        with keys_under(stage.key):
            (rehearse_objects if stage.trains else rehearse_sections)(stage.config)
    prepare(pipeline.config)
    made: dict[str, Any] = dict.fromkeys(str(stage.folder) for stage in ahead)
    for stage in ahead:
        with keys_under(stage.key):
            if stage.trains:
                made[str(stage.folder)] = rehearse_inputs(stage.config, made)
    if first_process():
        rehearse_evaluation(evaluation["prompts"], made)


def _results(pipeline: Pipeline, stage: StageConfig) -> dict[str, Any]:
    """Return the summary of a stage, running the stage unless it has finished before."""
    if stage in pipeline.skipped:
        results = read_summary(stage.folder)
    else:
        if first_process():
            target = stage.config["algorithm" if stage.trains else "call"]["_target_"].rpartition(".")[2]
            print(f"\n{stage.name}: {target} -> {stage.folder}", flush=True)
        run = pipeline.begin_stage()
        if isinstance(run, CalledRun):
            run.carry_out()
        else:
            carry_out(run)
        results = run.summary
    pipeline.end_stage()
    return results
