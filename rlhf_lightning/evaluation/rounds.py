"""The results of each round of feedback: its metrics in one row, and the panels over rounds."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.durable import write_durably, write_text_durably
from rlhf_lightning.evaluation import plots
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.win_rate import Z_95

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, float]


def round_rows(summary: Mapping[str, Any], stages: Sequence[str], rounds: int) -> list[dict[str, float]]:
    """Return one row per round: the metrics of its stages, keyed by the stages' names without the round.

    >>> round_rows({"ppo_1.kl": 1.0, "ppo_2.kl": 2.0, "sft.loss": 3.0}, ["ppo"], 2)
    [{'round': 1, 'ppo.kl': 1.0}, {'round': 2, 'ppo.kl': 2.0}]
    """
    rows: list[dict[str, float]] = [{"round": number} for number in range(1, rounds + 1)]
    for key, value in summary.items():
        stage, _, metric = key.partition(".")
        base, _, number = stage.rpartition("_")
        if base in stages and number.isdigit() and 1 <= int(number) <= rounds and _is_number(value):
            rows[int(number) - 1][f"{base}.{metric}"] = value
    return [row for row in rows if len(row) > 1]


def of_stage(summary: Mapping[str, Any], stage: str) -> dict[str, float]:
    """Return the metrics of one stage, without its name.

    >>> of_stage({"sft.loss": 3.0, "ppo_1.kl": 1.0}, "sft")
    {'loss': 3.0}
    """
    named = {key.removeprefix(f"{stage}."): value for key, value in summary.items() if key.startswith(f"{stage}.")}
    return {key: value for key, value in named.items() if _is_number(value)}


def mean_intervals(evaluation: Evaluation) -> dict[str, float]:
    """Return `<policy>.<score>_mean_low` and `_high`: the 95% interval of the mean, with prompts as the units."""
    found: dict[str, float] = {}
    for name in evaluation.metrics:
        for score in ("gold", "proxy"):
            by_prompt: dict[str, list[float]] = {}
            for row in evaluation.samples:
                if score in row["policies"][name]:
                    by_prompt.setdefault(row["prompt"], []).append(row["policies"][name][score])
            means = [sum(values) / len(values) for values in by_prompt.values()]
            if len(means) > 1:
                mean = sum(means) / len(means)
                spread = math.sqrt(sum((each - mean) ** 2 for each in means) / (len(means) - 1) / len(means))
                found[f"{name}.{score}_mean_low"] = mean - Z_95 * spread
                found[f"{name}.{score}_mean_high"] = mean + Z_95 * spread
    return found


def write_rounds(folder: Path, rows: Sequence[Row], before: Row, title: str) -> list[Path]:
    """Write rounds.jsonl, one row per round, and rounds.png, and return their paths.

    Args:
        folder: the pipeline's folder.
        rows: see `round_rows`.
        before: the metrics of the policy before the first round.
        title: title of the picture.
    """
    from rlhf_lightning.evaluation.report import Panel, draw_picture

    policy = next((stage for stage in _stages(rows, "gold_mean", "proxy_mean")), None)
    labels = next(iter(_stages(rows, "judgements")), None)
    panels: list[Panel] = []
    if policy is not None:
        score = "gold" if f"{policy}.gold_mean" in rows[0] else "proxy"
        panels.append(Panel(lambda ax: draw_gold(ax, rows, policy, before, score), ""))
        if _stages(rows, f"{score}_win_rate_vs_"):
            panels.append(Panel(lambda ax: draw_wins(ax, rows, policy, score), ""))
        if f"{policy}.kl" in rows[0]:
            panels.append(Panel(lambda ax: draw_divergence(ax, rows, policy), ""))
    if labels is not None:
        panels.append(Panel(lambda ax: draw_labels(ax, rows, labels), ""))
    table, picture = folder / "rounds.jsonl", folder / "rounds.png"
    write_text_durably(table, "".join(json.dumps(row) + "\n" for row in rows))
    if not panels:
        return [table]
    drawn = draw_picture(panels, title)
    write_durably(picture, lambda file: file.write(drawn))
    return [table, picture]


def _stages(rows: Sequence[Row], *metrics: str) -> list[str]:
    """Return the stages of a round that have one of these metrics or prefixes of metrics, the last stage first."""
    found = [key.partition(".")[0] for row in rows for key in row if key.partition(".")[2].startswith(metrics)]
    return list(dict.fromkeys(reversed(found)))


def draw_gold(ax: Axes, rows: Sequence[Row], stage: str, before: Row, score: str = "gold") -> None:
    """Draw the mean score of each round's policy with its interval; round 0 is the policy before the first round."""
    key = f"{score}_mean"
    points = [(0, before, key)] if key in before else []
    points += [(int(row["round"]), row, f"{stage}.{key}") for row in rows if f"{stage}.{key}" in row]
    color = plots.policy_colors(["ppo"])["ppo"]
    ax.plot([x for x, *_ in points], [row[k] for _, row, k in points], color=color)
    for x, row, k in points:
        if f"{k}_low" in row:
            ax.plot([x, x], [row[f"{k}_low"], row[f"{k}_high"]], color=color, linewidth=3, alpha=0.35)
        ax.plot([x], [row[k]], "o", color=color, markersize=8)
        ax.annotate(f"{row[k]:.2f}", (x, row[k]), (8, -9), textcoords="offset points", color=color, weight="bold")
    _rounds_axis(ax, [x for x, *_ in points])
    ax.set_title(f"{'Gold' if score == 'gold' else 'Proxy'} score, unseen prompts")
    ax.set_ylabel("mean score (bar: 95% interval)")


def draw_wins(ax: Axes, rows: Sequence[Row], stage: str, score: str = "gold") -> None:
    """Draw each round's policy against every earlier policy, one line per opponent."""
    pattern = re.compile(rf"{re.escape(stage)}\.{score}_win_rate_vs_(.+?)(?<!_low)(?<!_high)$")
    opponents = dict.fromkeys(found[1] for row in rows for key in row if (found := pattern.match(key)))
    colors = plots.policy_colors(list(opponents))
    for number, opponent in enumerate(opponents):
        key, color = f"{stage}.{score}_win_rate_vs_{opponent}", colors[opponent]
        points = [(row["round"] + 0.06 * number, row) for row in rows if key in row]
        ax.plot([x for x, _ in points], [100 * row[key] for _, row in points], "o-", color=color, markersize=6,
                label=f"against {plots.label(opponent)}")  # fmt: skip
        for x, row in points:
            if f"{key}_low" in row:
                ends = [100 * row[f"{key}_low"], 100 * row[f"{key}_high"]]
                ax.plot([x, x], ends, color=color, linewidth=3, alpha=0.35)
    ax.axhline(50, color=plots.INK, linewidth=1, linestyle=(0, (4, 3)))
    ax.legend(frameon=False, loc="best")
    _rounds_axis(ax, [int(row["round"]) for row in rows])
    ax.set_title("Wins against earlier policies")
    ax.set_ylabel(f"wins by {score} score, ties half (%)")


def draw_divergence(ax: Axes, rows: Sequence[Row], stage: str) -> None:
    """Draw how far each round's policy is from the reference."""
    points = [(int(row["round"]), row[f"{stage}.kl"]) for row in rows if f"{stage}.kl" in row]
    color = plots.policy_colors(["ppo"])["ppo"]
    ax.plot(*zip(*[(0, 0.0), *points], strict=True), "o-", color=color, markersize=8)
    for x, value in points:
        ax.annotate(f"{value:.1f}", (x, value), (8, -9), textcoords="offset points", color=color, weight="bold")
    _rounds_axis(ax, [0, *(x for x, _ in points)])
    ax.set_title("Distance from the reference")
    ax.set_ylabel("KL (nats per response)")


def draw_labels(ax: Axes, rows: Sequence[Row], stage: str) -> None:
    """Draw the number of judgements so far, and how far the labelers agree."""
    color, numbers = plots.policy_colors(["reward"])["reward"], [int(row["round"]) for row in rows]
    ax.bar(numbers, [row[f"{stage}.judgements"] for row in rows], width=0.5, color=plots.FAINT)
    for number, row in zip(numbers, rows, strict=True):
        text = f"{row[f'{stage}.judgements']:,.0f}"
        if f"{stage}.alpha" in row:
            low, high = row.get(f"{stage}.alpha_low", math.nan), row.get(f"{stage}.alpha_high", math.nan)
            text += f"\nα {row[f'{stage}.alpha']:.2f}\n({low:.2f} to {high:.2f})"
        at = (number, row[f"{stage}.judgements"])
        ax.annotate(text, at, (0, 4), textcoords="offset points", ha="center", color=color, fontsize=8.5)
    ax.margins(y=0.32)
    _rounds_axis(ax, numbers)
    ax.set_title("Judgements so far, and agreement")
    ax.set_ylabel("judgements")


def _rounds_axis(ax: Axes, numbers: Sequence[int]) -> None:
    ax.set_xticks(list(numbers))
    ax.margins(x=0.12)
    ax.set_xlabel("round")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
