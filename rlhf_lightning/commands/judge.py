"""rlhf-judge: a model as a labeler alongside people, or as a reviser of answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_lightning.commands.command_line import run_hydra_command
from rlhf_lightning.commands.progress_bar import progress_bar
from rlhf_lightning.config.feedback_checks import check_judge_command
from rlhf_lightning.runs.places import check_place
from rlhf_lightning.runs.run_folder import choose_run_dir, write_config, write_summary

COUNTS = ("requests", "cached", "retries", "prompt_tokens", "completion_tokens")
Report = Callable[[int, int], None]


def main() -> None:
    """Run rlhf-judge."""
    run_hydra_command("rlhf-judge", "judge", judge)


def judge(config: dict[str, Any]) -> None:
    """Judge or revise, and report agreement with people, dependence on the order, and cost."""
    check_judge_command(config)
    folder = choose_run_dir({**config, "name": "judge"})
    check_place(folder, config)

    from rlhf_lightning.judging.judge import make_judge

    asked = make_judge(config["judge"], config["seed"])
    write_config(folder, config)
    with progress_bar() as watch:
        report: Report = partial(watch, "revised" if config["revise"] else "judged")
        summary, lines = (_revise if config["revise"] else _label)(config, asked, folder, report)
    usage = asked.usage
    cost = usage.cost(config["judge"]["prompt_price"], config["judge"]["completion_price"])
    counts = {name: getattr(usage, name) for name in COUNTS}
    write_summary(folder, {**summary, **counts, "cost": cost})
    for line in [*lines, f"{usage}{'' if cost is None else f'; cost {cost:.4f}'}", f"report: {folder}/summary.json"]:
        print(line)


def _label(config: Mapping[str, Any], asked: Any, folder: Path, report: Report) -> tuple[dict[str, Any], list[str]]:
    from rlhf_lightning.feedback import FeedbackStore
    from rlhf_lightning.feedback.judging_tasks import judge_rows, judge_store, judged_lines

    settings = {"tie_below": config["tie_below"], "limit": config["limit"], "progress": report}
    if config["data"]:
        from rlhf_lightning.data.reading import read_records

        rows = read_records(config["data"], limit=config["limit"])
        found = judge_rows(rows, asked, folder, seed=config["seed"], source=config["data"], **settings)
        return found.flat(), [*judged_lines(found, "the labels"), f"verdicts: {folder}/verdicts.jsonl"]
    with FeedbackStore(config["feedback"]["store"]) as store:
        found = judge_store(store, asked, config["labeler"], **settings)
    return found.flat(), judged_lines(found, "people")


def _revise(config: Mapping[str, Any], asked: Any, folder: Path, report: Report) -> tuple[dict[str, Any], list[str]]:
    from rlhf_lightning.data.reading import read_records
    from rlhf_lightning.feedback.judging_tasks import revise_rows

    rows = read_records(config["revise"], limit=config["limit"])
    kept, left_out = revise_rows(
        rows, asked, folder, config["revisions"], config["limit"], report, source=config["revise"]
    )
    lines = [f"revised: {kept} answers, {left_out} left out", f"rows for SFT: {folder}/revisions.jsonl"]
    return {"revised": kept, "left_out": left_out}, [*lines, f"with critiques: {folder}/chains.jsonl"]
