"""Train every algorithm and print how far each ends from the exact optimum.

python scripts/exact_table.py                         # three seeds
python scripts/exact_table.py --seeds 3 4 5           # others
python scripts/exact_table.py --only DPO controller   # some rows

PPO's settings for small beta were chosen on seeds 0 to 2; docs/exact.md has the figures of others.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `tests` is not part of the installed package

from tests.exact.best_of_n import measure as measure_best_of_n
from tests.exact.costs import CostWorld
from tests.exact.enumerable import World
from tests.exact.ilql import train_ilql
from tests.exact.runs import (
    COST_LIMIT,
    LARGE,
    ON_POLICY,
    ONLINE_DPO,
    OnPolicy,
    train_controlled,
    train_dpo,
    train_lagrangian,
    train_nlpo,
    train_on_policy,
    train_online_dpo,
    train_ppo,
    train_reward_model,
)

Cells = tuple[str, float]  # what was measured, and the seconds it took
KL_TARGET = 1.0


def small(seed: int) -> World:
    """Return a world of 4 tokens, with 64 responses to each of 8 prompts."""
    return World(seed=seed)


def large(seed: int) -> World:
    """Return a world of 8 tokens, with 512 responses to each of 16 prompts."""
    return World(vocabulary=8, n_prompts=16, seed=seed)


def ppo(make_world: Callable[[int], World], beta: float) -> Callable[[int], Cells]:
    """Return the regret of PPO."""

    def measure(seed: int) -> Cells:
        result = train_ppo(make_world(seed), beta, seed)
        return f"{result.regret:.2%}", result.seconds

    return measure


def on_policy(plan: OnPolicy, make_world: Callable[[int], World], beta: float) -> Callable[[int], Cells]:
    """Return the regret of another algorithm that samples."""

    def measure(seed: int) -> Cells:
        result = train_on_policy(plan, make_world(seed), beta, seed)
        return f"{result.regret:.2%}", result.seconds

    return measure


def online_dpo(beta: float) -> Callable[[int], Cells]:
    """Return the regret of online DPO."""

    def measure(seed: int) -> Cells:
        result = train_online_dpo(small(seed), beta, seed)
        return f"{result.regret:.2%}", result.seconds

    return measure


def dpo(seed: int) -> Cells:
    """Return the KL to the optimum, and the slope."""
    result = train_dpo(small(seed), 1.0, seed)
    return f"{result.kl:.1e}, {result.slope:.3f}", result.seconds


def reward_model(seed: int) -> Cells:
    """Return the accuracy relative to the ceiling, and the slope."""
    result = train_reward_model(small(seed), seed)
    return f"{result.accuracy / result.bayes_accuracy:.2%}, {result.slope:.3f}", result.seconds


def ilql(seed: int) -> Cells:
    """Return the largest errors of Q and V, and regrets of the decoding policies, each beside the exact values'."""
    world = small(seed)
    result = train_ilql(world, seed, (1.0, 8.0))
    regrets = ("/".join(f"{world.regret(policy, 1 / b):.2%}" for policy in pair) for b, pair in result.policies.items())
    return f"{result.q_error:.3f}, {result.v_error:.3f}; {', '.join(regrets)}", result.seconds


def controller(seed: int) -> Cells:
    """Return KL relative to the target, and the coefficient relative to the right one."""
    result = train_controlled(small(seed), KL_TARGET, seed)
    return f"{result.kl / result.target:.3f}, {result.coef / result.beta:.3f}", result.seconds


def best_of_n(seed: int) -> Cells:
    """Return KL and expected score of the best of 4, exactly, and the mean score of 2,000 samples per prompt."""
    started = time.perf_counter()
    found = measure_best_of_n(small(seed), 4, 2_000, seed)
    return f"{found.kl:.4f}, {found.score:.3f}, {found.sampled:.3f}", time.perf_counter() - started


def constrained(seed: int) -> Cells:
    """Return cost relative to the limit, reward relative to the constrained optimum, regret, and the multipliers."""
    result = train_lagrangian(CostWorld(length=2, n_prompts=4, seed=seed), seed)
    cost, reward = result.cost / COST_LIMIT, result.reward / result.best_reward
    multipliers = f"{result.multiplier:.2f} / {result.exact_multiplier:.2f}"
    return f"{cost:.3f}, {reward:.2f}, {result.regret:.2%}, {multipliers}", result.seconds


def masked(seed: int) -> Cells:
    """Return the regret among policies under the masks, and the share of responses that these allow."""
    result = train_nlpo(World(length=2, n_prompts=4, seed=seed), 1.0, seed)
    return f"{result.regret:.3%}, {result.possible:.0%}", result.seconds


ROWS: list[tuple[str, str, Callable[[int], Cells]]] = [
    ("PPO, β = 1: regret", "≤ 1%", ppo(small, 1.0)),
    ("PPO, β = 0.3: regret", "≤ 5%", ppo(small, 0.3)),
    ("PPO, β = 0.1: regret", "≤ 10%", ppo(small, 0.1)),
    ("DPO, soft labels: KL(π‖π*) in nats, slope of the implicit reward on gold", "< 1e-3, 1", dpo),
    ("Reward model: accuracy / Bayes ceiling, slope on gold", "> 98%, 1", reward_model),
    ("Adaptive controller: KL / target, coefficient / exact coefficient", "1 ± 0.1, 1 ± 0.1", controller),
    ("Best of 4, no training: KL in nats, expected score, score of samples", "KL ≤ 0.6363", best_of_n),
    ("ILQL: error of Q, of V; regret/exact at b = 1, at b = 8", "0.05, 0.05; reported", ilql),
    ("PPO, 512 responses, β = 1: regret", "reported", ppo(large, 1.0)),
    ("PPO, 512 responses, β = 0.3: regret", "reported", ppo(large, 0.3)),
    ("PPO, 512 responses, β = 0.1: regret", "reported", ppo(large, 0.1)),
    *(
        (f"{name}, β = {beta}: regret", f"≤ {bound:.0%}", on_policy(plan, small, beta))
        for name, plan in ON_POLICY.items()
        for beta, bound in zip((1.0, 0.3), plan.bounds, strict=True)
    ),
    *(
        (f"online_dpo, β = {beta}: regret", f"≤ {bound:.0%}", online_dpo(beta))
        for beta, bound in zip((1.0, 0.3), ONLINE_DPO.bounds, strict=True)
    ),
    (
        "ppo_lagrangian: cost / limit, reward / constrained optimum, regret, multiplier / exact one",
        "1 ± 0.05, ≥ 0.95, ≤ 5%, reported",
        constrained,
    ),
    ("nlpo, β = 1: regret in its masked class, share of responses in it", "≤ 1%, reported", masked),
    ("grpo without std, 512 responses, β = 1.0: regret", "< 3%", on_policy(LARGE[1.0], large, 1.0)),
    ("grpo without std, 512 responses, β = 0.3: regret", "< 8%", on_policy(LARGE[0.3], large, 0.3)),
]


def line(cells: Iterable[str]) -> str:
    """Return a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table row by row, as the runs end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="rows with one of these in their name")
    arguments = parser.parse_args()
    seeds, rows = arguments.seeds, [row for row in ROWS if any(word in row[0] for word in arguments.only)]
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)  # the sums' order, and so the last digits, depend on the number of threads
    print(line(["", "bound", *(f"seed {seed}" for seed in seeds), "seconds per run"]))
    print(line(["---"] * (len(seeds) + 3)))
    started = time.perf_counter()
    for name, bound, measure in rows:
        cells = [measure(seed) for seed in seeds]
        seconds = sum(cell[1] for cell in cells) / len(cells)
        print(line([name, bound, *(cell[0] for cell in cells), f"{seconds:.0f}"]), flush=True)
    print(f"\n{(time.perf_counter() - started) / 60:.0f} minutes on one core.")


if __name__ == "__main__":
    main()
