"""How much gold PPO loses to over-optimisation against one reward model, and against the minimum of three.

    python scripts/ensemble_overoptimization.py                  seeds 0 to 2 in outputs/ensembles, and the table
    python scripts/ensemble_overoptimization.py --seeds 0 --world outputs/demo

On the embedded world, each seed trains three reward models, each on a third of the rankings, and then PPO with next to
no KL penalty: against each of them alone, and against the minimum of the three. All use standardised scores, so that
everything but the reward models is the same. The gold reward, which is not trained on, scores answers to unseen
prompts every few iterations. The loss of a run is its highest gold minus its last; what one reward model loses is the
mean of the three runs. Intervals are over prompts (95 %, normal), and a prompt is compared with itself. Finished runs
are not run again. Prints the table and writes it to FOLDER/table.md; the exit code is 1 if the interval of all seeds'
difference does not lie above 0.

`--world` names a folder whose `sft` and `world` of that seed (`seedN`, if there are such folders) are used instead of
being made.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from rlhf_lightning.simulation import gold_reward

MEMBERS = 3
ALONE = [f"one_{member}" for member in range(MEMBERS)]
SAMPLES = 8  # answers per prompt and validation
RECORD = "GOLD_SCORES_FILE"
COMMAND = "from rlhf_lightning.commands.train import main; main()"


def recorded_gold(prompts: list[str], responses: list[str], **columns: object) -> list[float]:
    """Return the gold scores, and append them with their prompts to a file."""
    scores = gold_reward(prompts, responses, **columns)
    with open(os.environ[RECORD], "a", encoding="utf-8") as file:
        file.writelines(json.dumps([prompt, score]) + "\n" for prompt, score in zip(prompts, scores, strict=True))
    return scores


def train(folder: Path, *words: str) -> None:
    """Run rlhf-train into a folder, unless it has ended there."""
    if (folder / "summary.json").is_file():
        return
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", RECORD: f"{folder}.gold.jsonl"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    Path(f"{folder}.gold.jsonl").unlink(missing_ok=True)
    command = [sys.executable, "-c", COMMAND, *words, f"run_dir={folder}", "logger=none", "prepare=null"]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)


def measure(folder: Path, base: Path, seed: int) -> None:
    """Train what the seed still lacks."""
    rows = (base / "world" / "rankings_train.jsonl").read_text(encoding="utf-8").splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    for member in range(MEMBERS):
        part = folder / f"rankings_{member}.jsonl"
        part.write_text("\n".join(rows[member::MEMBERS]) + "\n", encoding="utf-8")
    for name, words in runs(folder, base, seed).items():
        train(folder / name, *words)


def runs(folder: Path, base: Path, seed: int) -> dict[str, list[str]]:
    """Return the command lines of a seed's runs: the reward models, and PPO against one and against all of them."""
    start = [f"seed={seed}", f"model.path={base}/sft"]
    found = {
        f"reward_{member}": [
            *("experiment=reward_demo", *start, f"data.train={folder}/rankings_{member}.jsonl"),
            *(f"data.val={base}/world/preferences_test.jsonl", "scheduler.num_warmup_steps=7"),
        ]
        for member in range(MEMBERS)
    }
    models = [f"{folder}/{name}" for name in found]
    for name, reward in {
        **{name: [f"reward.model={model}"] for name, model in zip(ALONE, models, strict=True)},
        "min": ["reward.model=null", f"reward.models=[{','.join(models)}]", "reward.combine=min"],
    }.items():
        found[name] = [
            *("experiment=ppo_demo", *start, *reward, "reward.standardize=true"),
            *(f"data.train={base}/world/prompts_train.jsonl", f"data.val={base}/world/prompts_test.jsonl"),
            *(f"data.val_samples={SAMPLES}", "rollout.batch_size=256", "trainer.check_val_every_n_epoch=4"),
            *("algorithm.kl.kind=fixed", "algorithm.kl.coef=0.001", "algorithm.kl.target=null"),
            *("algorithm.target_kl=null", "optimizer.lr=5e-4", "scheduler=constant", "trainer.max_epochs=56"),
            *("callbacks=overoptimization", "trainer.num_sanity_val_steps=0"),
            "callbacks.overoptimization.scorers={gold:{function:ensemble_overoptimization.recorded_gold}}",
        ]
    return found


def curve(run: Path) -> list[dict[str, float]]:
    """Return the mean gold score of every prompt at each validation."""
    rows = [json.loads(line) for line in Path(f"{run}.gold.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = list(dict.fromkeys(prompt for prompt, _ in rows))
    size = len(prompts) * SAMPLES
    validations = []
    for start in range(0, len(rows), size):
        of: dict[str, list[float]] = {}
        for prompt, score in rows[start : start + size]:
            of.setdefault(prompt, []).append(score)
        validations.append({prompt: fmean(of[prompt]) for prompt in prompts})
    return validations


def losses(validations: Sequence[dict[str, float]]) -> tuple[float, float, dict[str, float]]:
    """Return the highest and the last mean of gold, and what each prompt lost between them."""
    means = [fmean(each.values()) for each in validations]
    best, last = validations[means.index(max(means))], validations[-1]
    return max(means), means[-1], {prompt: best[prompt] - last[prompt] for prompt in last}


def interval(values: Sequence[float]) -> str:
    """Return the mean with its 95 % interval."""
    mean, half = fmean(values), 1.96 * stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ({mean - half:.2f} to {mean + half:.2f})"


def table(folders: Sequence[Path]) -> tuple[str, bool]:
    """Return the table, and whether the minimum loses less over all seeds."""
    lines = [
        "| seed | reward | highest gold | last gold | gold lost | lost by one - lost by the minimum |",
        "|---|---|---|---|---|---|",
    ]
    every: list[float] = []
    for folder in folders:
        found = {name: losses(curve(folder / name)) for name in [*ALONE, "min"]}
        less = [fmean(found[one][2][prompt] for one in ALONE) - lost for prompt, lost in found["min"][2].items()]
        every += less
        for name, (best, last, lost) in found.items():
            title = f"minimum of {MEMBERS}" if name == "min" else f"reward model {name[-1]} alone"
            compared = interval(less) if name == "min" else ""
            lines.append(
                f"| {folder.name.removeprefix('seed')} | {title} | {best:.2f} | {last:.2f} | "
                f"{interval([*lost.values()])} | {compared} |"
            )
    lines.append(f"| all | | | | | {interval(every)} |")
    half = 1.96 * stdev(every) / len(every) ** 0.5
    return "\n".join(lines) + "\n", fmean(every) - half > 0


def main() -> int:
    """Run what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/ensembles"))
    parser.add_argument("--world", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    folders = [given.folder.absolute() / f"seed{seed}" for seed in given.seeds]
    for seed, folder in zip(given.seeds, folders, strict=True):
        of_seed = given.world.absolute() / f"seed{seed}"
        measure(folder, of_seed if of_seed.is_dir() else given.world.absolute(), seed)
    text, less = table(folders)
    (given.folder / "table.md").write_text(text, encoding="utf-8")
    print(text, end="")
    return 0 if less else 1


if __name__ == "__main__":
    sys.exit(main())
