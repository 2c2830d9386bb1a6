"""Does the KL controller hold its target? Runs the demo's PPO stage from several seeds, on one thread and on two.

    python scripts/kl_holds.py                                  ten runs: seeds 0 to 4, one and two threads
    python scripts/kl_holds.py --seeds 0 1 --threads 1          two of them
    python scripts/kl_holds.py --folder outputs/adaptive -- algorithm.kl.kind=adaptive algorithm.kl.horizon=2000

The world, the SFT model and the reward model are made once per seed, on one thread; both PPO runs of a seed start from
them. Finished runs in the folder are not run again. Prints a table and writes it to FOLDER/table.md. The exit code is 1
if the mean `objective/kl` of a run's last ten iterations is more than 10 % from its `algorithm.kl.target`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

LAST = 10  # iterations that are averaged
BAND = 0.1  # share of the target
COMMAND = "from rlhf_lightning.commands.train import main; main()"
HEAD = "| seed | threads | mean KL, last ten iterations | off target | first within 10 % | coefficient at the end |"


@dataclass(frozen=True)
class Held:
    """How one run held its target.

    Args:
        mean: KL per response over the last ten iterations, in nats.
        target: what it should be.
        first: the first iteration (from 1) whose KL was within the band; None: never.
        coef: the coefficient of the last iteration.
    """

    mean: float
    target: float
    first: int | None
    coef: float

    @property
    def error(self) -> float:
        """Return the error relative to the target."""
        return self.mean / self.target - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= BAND


def read(run: Path) -> Held:
    """Return how the run in a folder held its target."""
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    rows = [row for row in lines if "objective/kl" in row]
    kl = [row["objective/kl"] for row in rows]
    target = yaml.safe_load((run / "config.yaml").read_text())["algorithm"]["kl"]["target"]
    within = [step for step, value in enumerate(kl, start=1) if abs(value / target - 1) <= BAND]
    last = kl[-LAST:]
    return Held(sum(last) / len(last), target, within[0] if within else None, rows[-1]["kl/coef"])


def table(results: dict[tuple[int, int], Held]) -> str:
    """Return the rows of seed and threads as Markdown, and a line that counts them."""
    lines = [HEAD, "|---|---|---|---|---|---|"]
    for (seed, threads), run in results.items():
        first = "never" if run.first is None else f"iteration {run.first}"
        lines.append(f"| {seed} | {threads} | {run.mean:.2f} | {run.error:+.1%} | {first} | {run.coef:.3f} |")
    held = sum(run.holds for run in results.values())
    return "\n".join([*lines, "", f"{held} of {len(results)} runs within {BAND:.0%} of their target"])


def train(run: Path, threads: int, *overrides: str) -> None:
    """Run rlhf-train in a separate process, whose number of threads is set before torch is imported."""
    if (run / "summary.json").is_file():
        return
    settings = [f"run_dir={run}", "requires={}", "logger=none", "callbacks.progress=null", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", COMMAND, *settings], env=environment, check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, seed: int, threads: int, overrides: Sequence[str]) -> Held:
    """Train what the seed still lacks, and read its PPO run."""
    start, run = folder / f"seed{seed}", folder / f"seed{seed}/ppo_{threads}"
    world = [f"seed={seed}", f"prepare.seed={seed}", f"prepare.folder={start / 'world'}"]
    train(start / "sft", 1, "experiment=sft_demo", *world)
    train(start / "reward", 1, "experiment=reward_demo", *world, f"model.path={start / 'sft'}")
    models = [f"model.path={start / 'sft'}", f"reward.model={start / 'reward'}"]
    train(run, threads, "experiment=ppo_demo", *world, *models, *overrides)
    return read(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=Path("outputs/kl_holds"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the PPO stage, after --")
    arguments = parser.parse_args()
    folder, results = arguments.folder.resolve(), {}
    for seed in arguments.seeds:
        for threads in arguments.threads:
            held = results[seed, threads] = measure(folder, seed, threads, arguments.overrides)
            print(f"seed {seed}, {threads} threads: {held.mean:.2f} ({held.error:+.1%})", file=sys.stderr, flush=True)
    text = table(results)
    print(text)
    (folder / "table.md").write_text(text + "\n")
    sys.exit(0 if all(held.holds for held in results.values()) else 1)


if __name__ == "__main__":
    main()
