"""The report of a pipeline: report.html, which works offline, and report.png, a single picture."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.durable import write_durably, write_text_durably
from rlhf_lightning.evaluation import plots
from rlhf_lightning.evaluation.page import Figure, render_page, signed
from rlhf_lightning.evaluation.plots import History
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.outside_text import for_terminal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


@dataclass(frozen=True)
class Panel:
    """One drawing and a sentence on how to read it. `small` ones are left out of report.png."""

    draw: Callable[[Axes], None]
    caption: str
    small: bool = False


def write_report(
    folder: str | Path,
    evaluation: Evaluation,
    histories: Mapping[str, History],
    title: str,
    *,
    summary: Mapping[str, float] | None = None,
) -> list[Path]:
    """Write report.html and report.png into `folder` and return their paths. What is not known is left out.

    Args:
        histories: stage -> the rows of its metrics.jsonl.
        summary: flat metrics of the pipeline, of which `reward.accuracy`, `reward.bayes_accuracy` and `ppo.kl_target`
            are used.
    """
    import matplotlib as mpl

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    panels = report_panels(evaluation, histories, summary or {})
    samples = first_of_each_kind(evaluation.samples, 12)
    with mpl.rc_context(plots.STYLE):
        figures = [Figure(_png(_single(panel)), panel.caption, panel.small) for panel in panels]
        picture = _png(_picture([p for p in panels if not p.small], first_of_each_kind(samples, 3), evaluation, title))
    html_path, png_path = folder / "report.html", folder / "report.png"
    write_text_durably(html_path, render_page(title, evaluation, figures, samples))
    write_durably(png_path, lambda file: file.write(picture))
    return [html_path, png_path]


def report_panels(
    evaluation: Evaluation,
    histories: Mapping[str, History],
    summary: Mapping[str, float],
) -> list[Panel]:
    """Return the panels that have data, in reading order."""
    panels: list[Panel] = []
    for stage, history in histories.items():
        if not plots.series(history, "objective/scores")[0] or not plots.series(history, "objective/kl")[0]:
            continue
        color, target = plots.policy_colors([stage])[stage], summary.get(f"{stage}.kl_target")
        panels += [
            Panel(_with_iterations(stage, plots.draw_scores, history, color), "Mean score of each rollout."),
            Panel(
                _with_iterations(stage, plots.draw_kl, history, color, target),
                "KL divergence from the reference, summed over a response. An adaptive coefficient steers it.",
            ),
        ]
        if plots.series(history, "kl/coef")[0]:
            caption = "The price of a nat of KL, which the controller sets."
            panels.append(
                Panel(_with_iterations(stage, plots.draw_kl_coefficient, history, color), caption, small=True)
            )
    if "reward.accuracy" in summary:
        accuracy, ceiling = summary["reward.accuracy"], summary.get("reward.bayes_accuracy")
        panels.append(
            Panel(
                lambda ax: plots.draw_reward_accuracy(ax, accuracy, ceiling),
                "The labels are noisy: the ceiling is the accuracy of a labeler who knows the gold score.",
            )
        )
    panels += _policy_panels(evaluation)
    for stage, history in histories.items():
        if plots.series(history, "objective/scores")[0]:
            continue  # PPO's loss is relative to each rollout's own policy, so its curve says nothing
        for key in ("train/loss", "val/loss"):
            if sum(row.get(key) is not None for row in history) > 1:  # one point does not make a curve
                panels.append(Panel(_with_loss(history, key, stage), "", small=True))
    return panels


def draw_picture(panels: list[Panel], title: str) -> bytes:
    """Return a PNG of some panels, two per row."""
    import matplotlib as mpl

    with mpl.rc_context(plots.STYLE):
        rows = -(-len(panels) // 2)
        canvas = _canvas(10.5, 0.5 + 3.6 * rows)
        canvas.suptitle(title, x=0.008, ha="left", fontsize=15, weight="bold")
        for i, panel in enumerate(panels):
            panel.draw(canvas.add_subplot(rows, min(2, len(panels)), i + 1))
        return _png(canvas)


def first_of_each_kind(samples: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """Return the first row of the first `n` prompts, taking the kinds in turn: a fixed choice, not cherry-picked."""
    kinds: dict[Any, list[Mapping[str, Any]]] = {}
    seen: set[str] = set()
    for row in samples:
        if row["prompt"] not in seen:
            kinds.setdefault(row["kind"], []).append(row)
        seen.add(row["prompt"])
    rounds = range(max((len(rows) for rows in kinds.values()), default=0))
    return [rows[i] for i in rounds for rows in kinds.values() if i < len(rows)][:n]


def _policy_panels(evaluation: Evaluation) -> list[Panel]:
    panels: list[Panel] = []
    rows = list(evaluation.metrics.values())
    for score in ("gold", "proxy"):
        if any(f"{score}_win_rate_vs_{evaluation.baseline}" in row for row in rows):
            caption = "Pairs of responses to the same unseen prompt; Wilson's 95% interval over prompts."
            panels.append(Panel(_with_win_rates(evaluation, score), caption, small=score == "proxy" and bool(panels)))
    if evaluation.samples and all({"gold_mean", "proxy_mean"} <= row.keys() for row in rows):
        caption = (
            "Small dots are responses, large ones the policies' means. Above the dashed line, the proxy pays more than "
            "the response is worth by gold: over-optimisation."
        )
        panels.append(Panel(lambda ax: plots.draw_proxy_against_gold(ax, evaluation), caption))
    if (curves := evaluation.curves) is not None:
        fits = [f"{fit.alpha:.2f}, {fit.beta:.2f}" for curve in curves.curves for fit in (curve.proxy, curve.held_out)]
        caption = (
            "Gains over the start on unseen prompts. Lines: d(α − βd) of best-of-n, d(α − β log d) of training (Gao et "
            f"al. 2023), d = √KL; α, β by proxy and held out: best-of-n {fits[0]} and {fits[1]}, training {fits[2]} "
            f"and {fits[3]}."
        )
        panels.append(Panel(lambda ax: plots.draw_over_optimization(ax, curves), caption))
    if any("unsafe_refusal_rate" in row for row in rows):
        caption = "Unsafe prompts should be refused (filled, to the right), all others answered (hollow, to the left)."
        panels.append(Panel(lambda ax: plots.draw_refusals(ax, evaluation), caption))
    return panels


def _with_iterations(stage: str, draw: Callable[..., None], *arguments: Any) -> Callable[[Axes], None]:
    def panel(ax: Axes) -> None:
        draw(ax, *arguments, name=stage)
        ax.set_xlabel("iteration")

    return panel


def _with_loss(history: History, key: str, stage: str) -> Callable[[Axes], None]:
    return lambda ax: plots.draw_loss(ax, history, key, stage)


def _with_win_rates(evaluation: Evaluation, score: str) -> Callable[[Axes], None]:
    return lambda ax: plots.draw_win_rates(ax, evaluation, score)


def _single(panel: Panel) -> Canvas:
    canvas = _canvas(4.4 if not panel.small else 3.6, 3.3 if not panel.small else 2.5)
    panel.draw(canvas.subplots())
    return canvas


def _picture(panels: list[Panel], samples: list[Mapping[str, Any]], evaluation: Evaluation, title: str) -> Canvas:
    """Draw all large panels, three per row, above a strip of samples side by side."""
    rows = -(-len(panels) // 3)
    strip = 0.45 + 0.85 * len(samples) if samples else 0.0
    canvas = _canvas(13.5, 0.5 + 3.5 * rows + strip)
    canvas.suptitle(title, x=0.008, ha="left", fontsize=15, weight="bold")
    heights = [3.5] * rows + ([strip] if samples else [])
    if not heights:
        return canvas
    grid = canvas.add_gridspec(len(heights), 3, height_ratios=heights)
    for i, panel in enumerate(panels):
        panel.draw(canvas.add_subplot(grid[i // 3, i % 3]))
    if samples:
        _draw_samples(canvas.add_subplot(grid[rows, :]), samples, evaluation)
    return canvas


def _draw_samples(ax: Axes, samples: list[Mapping[str, Any]], evaluation: Evaluation) -> None:
    """Draw a table of text: the prompt, then each policy's response preceded by its score."""
    names = list(evaluation.metrics)
    colors = plots.policy_colors(names)
    ax.set(xlim=(0, 1), ylim=(len(samples), -0.45))
    ax.axis("off")
    left, width = 0.21, 0.79 / len(names)
    wrap = int(150 * width)
    ax.text(0, -0.2, "prompt", color=plots.MUTED, weight="bold")
    for j, name in enumerate(names):
        ax.text(left + j * width, -0.2, plots.label(name), color=colors[name], weight="bold")
    for i, row in enumerate(samples):
        ax.axhline(i - 0.06, color=plots.FAINT, linewidth=0.8)
        ax.text(0, i + 0.1, _wrapped(row["prompt"], 34), va="top", fontsize=9)
        for j, name in enumerate(names):
            answer = row["policies"][name]
            score = next((answer[key] for key in ("gold", "proxy") if key in answer), None)
            x = left + j * width
            ax.text(
                x,
                i + 0.1,
                "" if score is None else signed(score),
                va="top",
                fontsize=9,
                color=colors[name],
                weight="bold",
            )
            ax.text(x + 0.032, i + 0.1, _wrapped(answer["response"] or "(nothing)", wrap), va="top", fontsize=9)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(for_terminal(text), width, max_lines=4, placeholder=" …"))


def _canvas(width: float, height: float) -> Canvas:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    canvas = Canvas(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(canvas)
    return canvas


def _png(canvas: Canvas) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():
        # Prompts may be in any script. The warning names each character, on a separate line.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        canvas.savefig(stream, format="png", dpi=160, metadata={"Software": None})
    return stream.getvalue()
