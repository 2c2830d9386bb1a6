"""The panels of the report, each drawn on one matplotlib axes. Nothing here opens a window or reads a file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlhf_lightning.evaluation.best_of_n import Curves
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.outside_text import on_one_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

History = Sequence[Mapping[str, float | None]]

INK, MUTED, FAINT = "#1c2126", "#6b7480", "#d5dae0"
STYLE: Any = {
    "text.parse_math": False,  # `$` in a prompt or a name is a dollar sign
    "text.usetex": False,  # a matplotlibrc in the working folder may set it, and TeX would execute what texts contain
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.grid": True,
    "grid.color": "#eef0f3",
    "axes.axisbelow": True,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}
_NAMED = {"sft": "#8a929c", "ppo": "#1f66b3", "dpo": "#d9722e", "reward": "#3c8d5a"}
_LOSSES = {"train/loss": "training loss", "val/loss": "validation loss"}
_OTHERS = ("#7b52ab", "#2a9d98", "#c23b5e", "#a08416")


def policy_colors(names: Sequence[str]) -> dict[str, str]:
    """Return a colour per policy, the same in every panel."""
    others = iter(_OTHERS * len(names))
    return {name: _NAMED.get(name) or next(others) for name in names}


def label(name: str) -> str:
    """Return the name as shown to readers: short names are abbreviations."""
    return on_one_line(name.upper() if len(name) <= 4 else name)


def series(history: History, key: str) -> tuple[list[float], list[float]]:
    """Return (epoch from 1, value) of every row that has the key; the last row of an epoch counts."""
    values = {float(row.get("epoch") or 0) + 1: float(v) for row in history if (v := row.get(key)) is not None}
    return list(values), list(values.values())


def draw_curve(ax: Axes, history: History, key: str, color: str, digits: int = 2) -> None:
    """Draw one metric over PPO iterations, with its last value at the end of the line."""
    from matplotlib.ticker import MaxNLocator

    x, y = series(history, key)
    ax.plot(x, y, color=color)
    ax.plot(x[-1:], y[-1:], "o", color=color, markersize=5)
    value = f"{y[-1]:.{digits}f}"
    _halo(
        ax.annotate(value, (x[-1], y[-1]), (7, 0), textcoords="offset points", va="center", color=color, weight="bold")
    )
    ax.margins(x=0.02, y=0.12)
    ax.set_xlim(right=x[-1] + 0.09 * max(x[-1] - x[0], 1))
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def draw_scores(ax: Axes, history: History, color: str, name: str = "ppo") -> None:
    """Draw the reward of a run over its iterations."""
    draw_curve(ax, history, "objective/scores", color)
    ax.set_title(f"{label(name)}: reward")
    ax.set_ylabel("mean score of a rollout")


def draw_kl(ax: Axes, history: History, color: str, target: float | None, name: str = "ppo") -> None:
    """Draw the KL to the reference over iterations, and the controller's target."""
    draw_curve(ax, history, "objective/kl", color, digits=1)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    if target is not None:
        ax.axhline(target, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        ax.set_ylim(top=max(ax.get_ylim()[1], 1.2 * target))
        _halo(
            ax.annotate(
                f"target {target:g}", (0.02, target), (0, 4), ("axes fraction", "data"), "offset points", color=INK
            )
        )
    ax.set_title(f"{label(name)}: distance from the reference")
    ax.set_ylabel("KL (nats per response)")


def draw_kl_coefficient(ax: Axes, history: History, color: str, name: str = "ppo") -> None:
    """Draw the penalty's coefficient over iterations."""
    draw_curve(ax, history, "kl/coef", color, digits=3)
    ax.set_title(f"{label(name)}: KL coefficient")
    ax.set_ylabel("score per nat")


def draw_proxy_against_gold(ax: Axes, evaluation: Evaluation) -> None:
    """Draw every sampled response by true and trained-on score, and each policy's means.

    The line is the proxy as a function of gold on the baseline's responses. If a policy's mean lies above it, the proxy
    pays more than the true score justifies: over-optimisation.
    """
    colors = policy_colors(list(evaluation.metrics))
    points = {name: _points(evaluation, name) for name in evaluation.metrics}
    for name, (gold, proxy) in points.items():
        ax.plot(gold, proxy, "o", color=colors[name], markersize=3, alpha=0.18, markeredgewidth=0)
    gold, proxy = points[evaluation.baseline]
    slope, intercept = _line(gold, proxy)
    everything = [value for xs, _ in points.values() for value in xs]
    ends = [min(everything), max(everything)]
    ax.plot(ends, [slope * x + intercept for x in ends], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for i, (name, (xs, ys)) in enumerate(points.items()):
        x, y = sum(xs) / len(xs), sum(ys) / len(ys)
        ax.plot([x], [y], "o", color=colors[name], markersize=9, markeredgecolor="white", markeredgewidth=1.5)
        side = 1 if i % 2 else -1  # on alternating sides, so that labels of close means do not collide
        _halo(
            ax.annotate(
                label(name), (x, y), (side * 8, side * -7), textcoords="offset points", color=colors[name],
                weight="bold", ha="left" if side > 0 else "right", va="center",
            )
        )  # fmt: skip
    ax.set_title("Proxy against gold")
    ax.set_xlabel(f"gold score   (dashed: the trend of {label(evaluation.baseline)})")
    ax.set_ylabel("proxy score")


def draw_win_rates(ax: Axes, evaluation: Evaluation, score: str = "gold") -> None:
    """Draw the win rate against the baseline with its 95% interval, one row per policy."""
    colors = policy_colors(list(evaluation.metrics))
    key = f"{score}_win_rate_vs_{evaluation.baseline}"
    names = [name for name, row in evaluation.metrics.items() if key in row]
    for y, name in enumerate(reversed(names)):
        row = evaluation.metrics[name]
        rate, low, high = (100 * row[key + end] for end in ("", "_low", "_high"))
        ax.plot([low, high], [y, y], color=colors[name], linewidth=3, alpha=0.35)
        ax.plot([rate], [y], "o", color=colors[name], markersize=9)
        ax.annotate(
            f"{label(name)}  {rate:.0f}%", (rate, y), (0, 11), textcoords="offset points", ha="center",
            color=colors[name], weight="bold",
        )  # fmt: skip
    ax.axvline(50, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    ax.annotate("even", (50, 0), (4, 4), ("data", "axes fraction"), "offset points", color=INK)
    ax.set(xlim=(0, 104), ylim=(-0.7, len(names) - 0.3), yticks=[])
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_title(f"Wins against {label(evaluation.baseline)}, unseen prompts")
    ax.set_xlabel(f"wins by {score} score, ties half (%, bar: 95% interval)")


def draw_over_optimization(ax: Axes, curves: Curves) -> None:
    """Draw the gains of best-of-n and training over the start, by proxy (hollow) and by the held-out score (filled)."""
    colors = dict(zip((curve.name for curve in curves.curves), (_NAMED["reward"], _NAMED["ppo"]), strict=True))
    for curve in curves.curves:
        color, points = colors[curve.name], [point for point in curve.points if point.kl > 0]
        x = [math.sqrt(point.kl) for point in points]
        grid = [min(x) + (max(x) - min(x)) * i / 100 for i in range(101)]
        for score, fit, face, dashes in (
            ("proxy", curve.proxy, "white", (0, (4, 3))),
            ("held_out", curve.held_out, color, "-"),
        ):
            y = [getattr(point, score) - getattr(curves.start, score) for point in points]
            ax.plot(x, y, "o", color=color, markerfacecolor=face, markersize=4)
            name = curve.name if score == "held_out" else None
            ax.plot(grid, [fit(d) for d in grid], color=color, linewidth=1.4, linestyle=dashes, label=name)
    ax.axhline(0, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    ax.legend(loc="lower right", frameon=False, labelcolor="linecolor", prop={"weight": "bold"})
    ax.set_title("Over-optimisation")
    ax.set_xlabel("√KL from the start (nats per response)")
    ax.set_ylabel("gain:   ○ by proxy   ● held out")


def draw_refusals(ax: Axes, evaluation: Evaluation) -> None:
    """Draw refusals of unsafe prompts (filled) and of safe ones (hollow), one row per policy."""
    colors = policy_colors(list(evaluation.metrics))
    names = [name for name, row in evaluation.metrics.items() if "unsafe_refusal_rate" in row]
    for y, name in enumerate(reversed(names)):
        row, color = evaluation.metrics[name], colors[name]
        unsafe, over = 100 * row["unsafe_refusal_rate"], 100 * row.get("over_refusal_rate", float("nan"))
        ax.plot([over, unsafe], [y, y], color=color, linewidth=1.5, alpha=0.3)
        ax.plot([unsafe], [y], "o", color=color, markersize=9)
        ax.plot([over], [y], "o", color="white", markeredgecolor=color, markeredgewidth=2, markersize=8)
        for value in (unsafe, over):
            ax.annotate(
                f"{value:.0f}%",
                (value, y),
                (0, 10),
                textcoords="offset points",
                ha="center",
                color=color,
                weight="bold",
            )
    ax.set(xlim=(-8, 108), ylim=(-0.6, len(names) - 0.3))
    ax.set_yticks(range(len(names)), [label(name) for name in reversed(names)], weight="bold")
    for tick, name in zip(ax.get_yticklabels(), reversed(names), strict=True):
        tick.set_color(colors[name])
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_title("What is refused")
    ax.set_xlabel("refused (%):   ● unsafe prompts   ○ all others")


def draw_reward_accuracy(ax: Axes, accuracy: float, ceiling: float | None) -> None:
    """Draw held-out preference accuracy between chance and the Bayes ceiling of the noisy labels."""
    color = _NAMED["reward"]
    ax.barh([0], [100 * accuracy - 50], left=50, height=0.42, color=color)
    ax.annotate(
        f"{100 * accuracy:.1f}%", (100 * accuracy, 0), (-7, 0), textcoords="offset points", ha="right", va="center",
        color="white", weight="bold",
    )  # fmt: skip
    if ceiling is not None:
        ax.plot([100 * ceiling] * 2, [-0.34, 0.34], color=INK, linewidth=2)
        text = f"Bayes ceiling {100 * ceiling:.1f}%\n({100 * accuracy / ceiling:.0f}% of it reached)"
        ax.annotate(text, (100 * ceiling, 0.36), (0, 4), textcoords="offset points", ha="center", va="bottom")
    ax.set(xlim=(50, 100), ylim=(-0.7, 1.1), yticks=[])
    ax.grid(False, axis="y")
    ax.spines["left"].set_visible(False)
    ax.set_title("Reward model on held-out pairs")
    ax.set_xlabel("pairs ranked as the labeler did (%, from chance)")


def draw_loss(ax: Axes, history: History, key: str, name: str) -> None:
    """Draw a loss over optimiser steps."""
    rows = [(float(row.get("step") or 0), float(v)) for row in history if (v := row.get(key)) is not None]
    ax.plot(*zip(*rows, strict=True), color=policy_colors([name])[name], linewidth=1.5)
    ax.set_title(f"{label(name)}: {_LOSSES[key]}")
    ax.set_xlabel("optimiser steps")


def _halo(text: Text) -> None:
    """Add a white outline, so that a label is readable over points and lines."""
    from matplotlib.patheffects import withStroke

    text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _points(evaluation: Evaluation, name: str) -> tuple[list[float], list[float]]:
    answers: list[dict[str, Any]] = [row["policies"][name] for row in evaluation.samples]
    return [answer["gold"] for answer in answers], [answer["proxy"] for answer in answers]


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line; slope 0 if x does not vary."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    return slope, mean_y - slope * mean_x
