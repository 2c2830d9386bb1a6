"""Rounds of feedback on the embedded world, three seeds: does gold rise, and what do rounds and aggregation bring?

    python scripts/measure_rounds.py                       seeds 0 to 2, four tables
    python scripts/measure_rounds.py --seeds 0 1 2 3 4 --tasks 300
    python scripts/measure_rounds.py --seeds 0 -- round.ppo.model_from=policy

Pipelines of each seed, in FOLDER/seedN; what has ended is not run again (nor are policies scored again, which leaves
scores.json), and all share one SFT model:

    rounds          pipeline=rounds: three rounds
    one             one round with as many tasks as the first two of `rounds`
    majority, bradley_terry     the labels of `one`, aggregated in another way, and the reward models of them

Prints the tables and writes them to FOLDER/tables.md. The 95 % intervals come from a bootstrap over the prompts of each
seed, and differences are taken prompt by prompt. They leave out chance in training, except for those "over seeds",
which are Student's, with the seeds' means as the sample.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

COMMAND = "from rlhf_lightning.commands.pipeline import main; main()"
LIMIT = 150  # tasks of a round in conf/pipeline/rounds.yaml
GOLD = "rlhf_lightning.simulation.gold_reward"
AGGREGATIONS = ("dawid_skene", "bradley_terry", "majority")
DRAWS = 4000
NO_EVALUATION = ("evaluation.prompts=null", "evaluation.proxy=null")  # `scores` has sixteen responses to each prompt

Array = NDArray[np.float64]
Scores = Mapping[str, Array]  # name -> one number per prompt


def interval(seeds: Sequence[Array]) -> tuple[float, float, float]:
    """Return the mean over seeds of the mean over prompts, and its bootstrap interval with prompts drawn per seed.

    >>> interval([np.ones(5), np.zeros(9)])
    (0.5, 0.5, 0.5)
    """
    numbers = np.random.default_rng(0)
    drawn = [each[numbers.integers(0, len(each), (DRAWS, len(each)))].mean(1) for each in seeds]
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    return float(np.mean([each.mean() for each in seeds])), float(low), float(high)


def shown(seeds: Sequence[Array], form: str) -> str:
    """Return mean, interval and each seed's mean as cells of a table."""
    mean, low, high = (format(value, form) for value in interval(seeds))
    each = ", ".join(format(float(seed.mean()), form) for seed in seeds)
    return f"{mean} ({low} to {high}) | {each}"


def interval_over_seeds(means: Sequence[float]) -> tuple[float, float]:
    """Return Student's 95 % interval of the mean of two or more independent values.

    >>> [round(bound, 3) for bound in interval_over_seeds([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    from scipy import stats

    low, high = stats.t.interval(0.95, len(means) - 1, loc=np.mean(means), scale=stats.sem(means))
    return float(low), float(high)


def measure(folder: Path, seed: int, tasks: int, overrides: Sequence[str]) -> None:
    """Run the pipelines of a seed that have not ended yet."""
    limit, limit_of_one = (f"round.collect.call.limit={count}" for count in (tasks, 2 * tasks))
    run(folder / "rounds", seed, limit, *overrides)
    begin(folder / "one", folder / "rounds", "world", "sft")
    run(folder / "one", seed, "from=collect_1", "rounds=1", limit_of_one, *overrides)
    alone = ["from=export_1", "rounds=1", "~round.ppo"]
    for name in AGGREGATIONS[1:]:
        begin(folder / name, folder / "one", "world", "sft", "collect_1", "label_1", "feedback.db")
        run(folder / name, seed, *alone, limit_of_one, f"round.export.call.aggregation={name}", *overrides)


def begin(folder: Path, source: Path, *parts: str) -> None:
    """Copy what another pipeline has made, and this one begins from."""
    for part in parts:
        if (source / part).is_dir():
            shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
        else:
            shutil.copy(source / part, folder / part)


def run(folder: Path, seed: int, *overrides: str) -> None:
    """rlhf-pipeline pipeline=rounds in a process of its own, unless it has ended."""
    if (folder / "summary.json").is_file():
        return
    words = ["pipeline=rounds", f"seed={seed}", f"run_dir={folder}", "logger=none", *NO_EVALUATION, *overrides]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", COMMAND, *words], env=environment, check=True, stdout=sys.stderr)


def scores(folder: Path, seed: int) -> tuple[Scores, Scores]:
    """Return a seed's gold scores and accuracies, which `golds` and `accuracies` compute once."""
    file = folder / "scores.json"
    if not file.is_file():
        found = [
            {name: list(each) for name, each in kind.items()} for kind in (golds(folder, seed), accuracies(folder))
        ]
        file.write_text(json.dumps(found), encoding="utf-8")
    gold, accuracy = json.loads(file.read_text(encoding="utf-8"))
    return (
        {name: np.array(each) for name, each in gold.items()},
        {name: np.array(each) for name, each in accuracy.items()},
    )


def golds(folder: Path, seed: int) -> Scores:
    """Return the mean gold score per unseen prompt of every policy of a seed, sixteen responses to each."""
    from rlhf_lightning.evaluation import evaluate_policies
    from rlhf_lightning.rewards import make_reward

    policies = {f"rounds_{i}": folder / f"rounds/ppo_{i}" for i in (1, 2, 3)}
    policies["one"] = folder / "one/ppo_1"
    found = evaluate_policies(
        {"sft": folder / "rounds/sft", **policies},
        folder / "rounds/world/prompts_test.jsonl",
        "sft",
        gold=make_reward(function=GOLD),
        max_new_tokens=32,
        batch_size=160,
        seed=seed,
        samples_per_prompt=16,
    )
    prompts: dict[str, dict[str, list[float]]] = {}
    for row in found.samples:
        for name, each in row["policies"].items():
            prompts.setdefault(name, {}).setdefault(row["prompt"], []).append(each["gold"])
    return {name: np.array([np.mean(each) for each in scores.values()]) for name, scores in prompts.items()}


def accuracies(folder: Path) -> Scores:
    """Return the share of held-out pairs per prompt that the reward models of each aggregation decide as labelled."""
    from rlhf_lightning.rewards import make_reward

    text = (folder / "rounds/world/preferences_test.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    prompts = [row["prompt"] for row in rows]
    found: dict[str, Array] = {}
    for name in AGGREGATIONS:
        runs = folder / ("one" if name == "dawid_skene" else name)
        members = sorted(str(each.parent) for each in runs.glob("reward_1*/summary.json"))
        reward = make_reward(**({"models": members} if len(members) > 1 else {"model": members[0]}), batch_size=256)
        better, worse = (reward(prompts, [row[key] for row in rows]) for key in ("chosen", "rejected"))
        of: dict[str, list[float]] = {}
        for prompt, b, w in zip(prompts, better, worse, strict=True):
            of.setdefault(prompt, []).append(float(b > w) + 0.5 * float(b == w))
        found[name] = np.array([np.mean(each) for each in of.values()])
    return found


def right_labels(folder: Path) -> dict[str, float]:
    """Return for each aggregation the share of decided pairs in which the answer of higher gold score is preferred."""
    from rlhf_lightning.feedback import FeedbackStore
    from rlhf_lightning.feedback.export import preference_rows
    from rlhf_lightning.simulation import gold_reward

    found = {}
    with FeedbackStore(f"sqlite:///{folder}/one/feedback.db") as store:
        tasks, judgements = list(store.tasks()), list(store.judgements())
    for name in AGGREGATIONS:
        pairs = [gold_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
                 for row in preference_rows(tasks, judgements, name)]  # fmt: skip
        found[name] = float(np.mean([better > worse for better, worse in pairs if better != worse]))
    return found


def tables(folders: Sequence[Path], gold: Sequence[Scores], accuracy: Sequence[Scores], tasks: int = LIMIT) -> str:
    """Return the three tables in Markdown."""

    def gain(later: str, earlier: str) -> str:
        return shown([each[later] - each[earlier] for each in gold], "+.2f")

    policies = {"SFT": "sft", **{f"round {i}": f"rounds_{i}" for i in (1, 2, 3)}}
    before = dict(zip(list(policies.values())[1:], policies.values(), strict=False))
    lines = ["| policy | gold | each seed | gain over the policy before | each seed |", "|---|---|---|---|---|"]
    for title, name in policies.items():
        change = gain(name, before[name]) if name in before else " | "
        lines.append(f"| {title} | {shown([each[name] for each in gold], '.2f')} | {change} |")
    lines += [
        "",
        "| tasks | gold, two rounds | gold, one round | two rounds less one | each seed | over seeds |",
        "|---|---|---|---|---|---|",
    ]
    two, one = (f"{interval([each[name] for each in gold])[0]:.2f}" for name in ("rounds_2", "one"))
    means = [float((each["rounds_2"] - each["one"]).mean()) for each in gold]
    over = " to ".join(f"{bound:+.2f}" for bound in interval_over_seeds(means)) if len(means) > 1 else "–"
    lines.append(f"| {2 * tasks} | {two} | {one} | {gain('rounds_2', 'one')} | {over} |")
    accurate = "reward model's held-out accuracy"
    columns = ["aggregation", "right labels", accurate, "each seed", "more than majority", "each seed"]
    lines += ["", f"| {' | '.join(columns)} |", "|---|---|---|---|---|---|"]
    right = [right_labels(folder) for folder in folders]
    for name in AGGREGATIONS:
        more = shown([each[name] - each["majority"] for each in accuracy], "+.1%") if name != "majority" else " | "
        mine = shown([each[name] for each in accuracy], ".1%")
        lines.append(f"| `{name}` | {np.mean([each[name] for each in right]):.1%} | {mine} | {more} |")
    return "\n".join(lines)


def table_of_kinds(folders: Sequence[Path], gold: Sequence[Scores]) -> str:
    """Return two rounds against one for each kind of prompt, in Markdown; the scores are in the order of the file."""
    found: dict[str, list[tuple[float, float]]] = {}
    for folder, each in zip(folders, gold, strict=True):
        lines = (folder / "rounds/world/prompts_test.jsonl").read_text(encoding="utf-8").splitlines()
        kinds = np.array(list({row["prompt"]: row["kind"] for row in map(json.loads, lines)}.values()))
        for kind in sorted(set(kinds)):
            two, one = (float(each[name][kinds == kind].mean()) for name in ("rounds_2", "one"))
            found.setdefault(str(kind), []).append((two, one))
    rows = ["| kind of prompt | gold, two rounds | gold, one round | less | over seeds |", "|---|---|---|---|---|"]
    for kind, pairs in found.items():
        less = [two - one for two, one in pairs]
        over = " to ".join(f"{bound:+.2f}" for bound in interval_over_seeds(less)) if len(less) > 1 else "–"
        two, one = np.mean(pairs, axis=0)
        rows.append(f"| {kind} | {two:.2f} | {one:.2f} | {np.mean(less):+.2f} | {over} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", type=int, default=LIMIT, help="of a round; `one` has twice as many")
    parser.add_argument("--folder", type=Path, default=Path("outputs/measure_rounds"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of all pipelines, after --")
    arguments = parser.parse_args()
    folders = [arguments.folder.resolve() / f"seed{seed}" for seed in arguments.seeds]
    for folder, seed in zip(folders, arguments.seeds, strict=True):
        measure(folder, seed, arguments.tasks, arguments.overrides)
    gold, accuracy = zip(*map(scores, folders, arguments.seeds), strict=True)
    text = f"{tables(folders, gold, accuracy, arguments.tasks)}\n\n{table_of_kinds(folders, gold)}"
    print(text)
    (arguments.folder / "tables.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
