"""One table of the algorithms on the embedded world: gold score, wins against SFT, KL and seconds, of three seeds.

    python scripts/algorithms_table.py                          `pipeline=algorithms` for seeds 0 to 2, and the table
    python scripts/algorithms_table.py --seeds 0 -- stages.kto.algorithm.beta=0.1

A seed is a pipeline in FOLDER/seedN, whose stages run one by one, each in a separate process; finished stages are not
run again, so the stages of an older run (`make demo`) may be copied there. The evaluation follows the last stage.
Prints the table and writes it to FOLDER/table.md. The exit code is 1 if an algorithm's wins, over all seeds, are below
75 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.evaluation.win_rate import wilson_interval

WINS = 0.75
COMMAND = "from rlhf_lightning.commands.pipeline import main; main()"
HEAD = "| algorithm | gold | wins against SFT | wins of each seed | KL, nats per response | processor seconds |"


@cache
def stages() -> list[str]:
    """Return the pipeline's stages in order: SFT and the reward model, then the algorithms."""
    return list(compose_config("pipeline", ["pipeline=algorithms"])["stages"])


def measure(folder: Path, seed: int, overrides: Sequence[str]) -> None:
    """Run what the seed's pipeline still lacks: the stages, and with the last one the evaluation."""
    if evaluated(folder):
        return
    names = stages()
    for place, name in enumerate(names[:-1], start=1):
        if not (folder / name / "summary.json").is_file():
            alone = ["evaluation.prompts=null", *(f"~stages.{later}" for later in names[place:])]
            of_others = tuple(f"stages.{later}." for later in names[place:])
            own = [each for each in overrides if not each.lstrip("+~").startswith(("evaluation.", *of_others))]
            run(folder, seed, name, *alone, *own)
    run(folder, seed, names[-1], *overrides)


def evaluated(folder: Path) -> bool:
    """Return whether the pipeline in a folder has ended with its evaluation; a stage alone also leaves a summary."""
    file = folder / "summary.json"
    return file.is_file() and f"{stages()[-1]}.gold_mean" in json.loads(file.read_text())


def run(folder: Path, seed: int, begin: str, *overrides: str) -> None:
    """Run rlhf-pipeline from a stage on, in a separate process."""
    settings = [f"seed={seed}", f"run_dir={folder}", f"from={begin}", "logger=none", *overrides]
    command = [sys.executable, "-c", COMMAND, "pipeline=algorithms", *settings]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def prompts_of(folder: Path) -> int:
    """Return how many prompts the pipeline was evaluated on, the units of an interval."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return sum(1 for _ in Path(config["evaluation"]["prompts"]).open(encoding="utf-8"))


def wins(summaries: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the mean over seeds of the share of comparisons with SFT that an algorithm wins by the gold reward."""
    return mean([summary[f"{name}.gold_win_rate_vs_sft"] for summary in summaries])


def row(summaries: Sequence[Mapping[str, Any]], name: str, prompts: int) -> str:
    """Return an algorithm's line: means over seeds, a Wilson interval over all seeds' prompts, and each seed's wins."""
    rate = wins(summaries, name)
    low, high = wilson_interval(rate, prompts)
    each = ", ".join(f"{summary[f'{name}.gold_win_rate_vs_sft']:.0%}" for summary in summaries)
    gold, kl = (mean([summary[f"{name}.{key}"] for summary in summaries]) for key in ("gold_mean", "kl"))
    seconds = [summary.get(f"{name}.cpu_seconds") for summary in summaries]
    time = "" if None in seconds else f"{mean(seconds):.0f}"
    return f"| {name} | {gold:.2f} | {rate:.1%} ({low:.0%}-{high:.0%}) | {each} | {kl:.2f} | {time} |"


def mean(values: Sequence[Any]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs/algorithms"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the pipeline, after --")
    arguments = parser.parse_args()
    folders = [arguments.folder.resolve() / f"seed{seed}" for seed in arguments.seeds]
    for folder, seed in zip(folders, arguments.seeds, strict=True):
        measure(folder, seed, arguments.overrides)
    algorithms = stages()[2:]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    prompts = sum(map(prompts_of, folders))
    lines = [HEAD, "|---|---|---|---|---|---|", *(row(summaries, name, prompts) for name in algorithms)]
    low = [name for name in algorithms if wins(summaries, name) < WINS]
    lines += ["", f"{len(algorithms) - len(low)} of {len(algorithms)} win at least {WINS:.0%}"]
    text = "\n".join(lines)
    print(text)
    (arguments.folder / "table.md").write_text(text + "\n")
    sys.exit(1 if low else 0)


if __name__ == "__main__":
    main()
