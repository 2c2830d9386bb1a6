"""Best-of-n of the SFT model on the embedded world: gold score and wins for n up to 64, of several seeds.

python scripts/best_of_n_curve.py                                  from outputs/algorithms/seed0 to seed2
python scripts/best_of_n_curve.py --folder FOLDER --seeds 0 1 --picture docs/pictures/best_of_n.png

Each seed's folder has an SFT run, a reward model and a world (`make algorithms`, or the stages of `make demo`). For
each held-out prompt, 64 answers are sampled; the best of n by the reward model is averaged over all subsets of n of
them. Wins are against one other answer of the SFT model to the same prompt. Prints a table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_lightning.evaluation.best_of_n import Point, best_of_n_points, powers_of_two
from rlhf_lightning.evaluation.policies import read_prompts, score_responses
from rlhf_lightning.evaluation.sampling import MOST_AT_ONCE, sample_responses
from rlhf_lightning.models import load_causal_lm, load_tokenizer
from rlhf_lightning.rewards import RewardFunction, make_reward
from rlhf_lightning.rollout import SamplingSettings

GOLD = "rlhf_lightning.simulation.gold_reward"


@dataclass(frozen=True)
class Curve:
    """For each n, proxy and gold score (`points`), and the share of wins by gold (`wins`)."""

    points: list[Point]
    wins: list[float]


def measure(folder: Path, seed: int, largest: int, new_tokens: int) -> Curve:
    """Return the curve of one seed's SFT model."""
    policy, tokenizer = load_causal_lm(folder / "sft").eval(), load_tokenizer(folder / "sft")
    prompts = read_prompts(tokenizer, folder / "world/prompts_test.jsonl", 512, None)
    settings, rows = SamplingSettings(new_tokens), [row for row in prompts for _ in range(largest)]
    others = sample_responses(policy, tokenizer, prompts, settings, batch_size=256, seed=seed)
    answers = sample_responses(policy, tokenizer, rows, settings, batch_size=256, seed=seed + 1000)

    def scores(name: str, reward: RewardFunction) -> list[list[float]]:
        flat: list[float] = []
        for start in range(0, len(rows), MOST_AT_ONCE):
            part = slice(start, start + MOST_AT_ONCE)
            flat += score_responses(name, reward, tokenizer, rows[part], answers[part])
        return [flat[i : i + largest] for i in range(0, len(flat), largest)]

    gold_reward = make_reward(function=GOLD)
    proxy, gold = scores("proxy", make_reward(model=str(folder / "reward"))), scores("gold", gold_reward)
    base = score_responses("gold", gold_reward, tokenizer, prompts, others)
    outcomes = [[(x > b) + (x == b) / 2 for x in row] for row, b in zip(gold, base, strict=True)]
    ns = powers_of_two(largest)
    wins = [point.held_out for point in best_of_n_points(proxy, outcomes, ns)]
    return Curve(best_of_n_points(proxy, gold, ns), wins)


def draw(curves: Sequence[Curve], ns: Sequence[int], picture: Path) -> None:
    """Draw gold and proxy score over n, a line per seed."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure = Figure(figsize=(7.2, 2.9), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, name, title in zip(
        figure.subplots(1, 2), ("held_out", "proxy"), ("gold score", "proxy score"), strict=True
    ):
        for i, curve in enumerate(curves):
            ax.plot(ns, [getattr(point, name) for point in curve.points], marker="o", ms=3, label=f"seed {i}")
        ax.set_xscale("log", base=2)
        ax.set_xticks(ns, [str(n) for n in ns])
        ax.set(xlabel="n", title=title)
        ax.legend(frameon=False)
    figure.savefig(picture)


def main() -> None:
    """Measure, print the table, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/algorithms"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--largest", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    curves = [measure(given.folder / f"seed{seed}", seed, given.largest, given.new_tokens) for seed in given.seeds]
    ns = powers_of_two(given.largest)
    print("| n | KL at most, nats | gold | gold of each seed | wins against SFT | wins of each seed |")
    print("|---|---|---|---|---|---|")
    for i, n in enumerate(ns):
        golds, wins = [curve.points[i].held_out for curve in curves], [curve.wins[i] for curve in curves]
        cells = [f"{fmean(golds):.2f}", ", ".join(f"{x:.2f}" for x in golds)]
        cells += [f"{fmean(wins):.1%}", ", ".join(f"{x:.1%}" for x in wins)]
        print(f"| {n} | {curves[0].points[i].kl:.2f} | {' | '.join(cells)} |")
    if given.picture is not None:
        draw(curves, ns, given.picture)


if __name__ == "__main__":
    main()
