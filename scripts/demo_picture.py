"""Draw README's picture of a finished demo: three panels of its report and two of its samples, at README's width.

make demo && python scripts/demo_picture.py                                   from outputs/demo into docs/demo.png
python scripts/demo_picture.py --demo outputs/demo1 --to elsewhere.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rlhf_lightning.evaluation import Evaluation, plots
from rlhf_lightning.runs.run_folder import read_json_lines

WIDTH, HEIGHT, DPI = 9.2, 4.9, 180  # inches: README shows about 900 pixels, so that text of 9 points stays readable
POLICIES = ("sft", "ppo", "dpo")


class Samples(HTMLParser):
    """The rows of the report's table of samples: the text of a cell, what its spans say apart."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[dict[str, str]]] = []
        self.part: str | None = None  # which part of a cell text belongs to; None: outside the table
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin a table, a row, a cell or a span."""
        kind = dict(attrs).get("class")
        if tag == "table":
            self.inside = kind == "samples"
        elif self.inside and tag == "tr":
            self.rows.append([])
        elif self.inside and tag == "td":
            self.rows[-1].append({"text": ""})
            self.part = "text"
        elif self.inside and tag == "span" and kind and self.rows[-1]:
            self.part = kind

    def handle_endtag(self, tag: str) -> None:
        """End a span or a cell."""
        self.part = "text" if tag == "span" and self.part else None if tag in ("td", "table") else self.part

    def handle_data(self, data: str) -> None:
        """Add to the part that is open."""
        if self.inside and self.part:
            cell = self.rows[-1][-1]
            cell[self.part] = cell.get(self.part, "") + data


def harmless_samples(report: str, count: int) -> list[list[dict[str, str]]]:
    """Return the report's first samples, one per kind, without prompts that are unsafe or look it."""
    reader = Samples()
    reader.feed(report)
    kinds: dict[str, list[dict[str, str]]] = {}
    for row in reader.rows:
        if row and "unsafe" not in row[0].get("kind", ""):
            kinds.setdefault(row[0].get("kind", ""), row)
    return [*kinds.values()][:count]


def draw_samples(ax: Axes, samples: list[list[dict[str, str]]]) -> None:
    """Write a table: the prompt, then each policy's response behind its gold score."""
    colors = plots.policy_colors(POLICIES)
    columns = (0.0, 0.205, 0.47, 0.735)
    ax.set(xlim=(0, 1), ylim=(len(samples), -0.4))
    ax.axis("off")
    for x, name in zip(columns, ("", *POLICIES), strict=True):
        ax.text(x, -0.12, plots.label(name) if name else "prompt", color=colors.get(name, plots.MUTED), weight="bold")
    for i, row in enumerate(samples):
        ax.axhline(i, color=plots.FAINT, linewidth=0.8)
        for x, cell, name in zip(columns, row, ("", *POLICIES), strict=True):
            score = cell.get("score", "")
            ax.text(x, i + 0.14, score, va="top", color=colors.get(name, plots.INK), weight="bold", fontsize=9)
            text = "\n".join(textwrap.wrap(cell["text"].strip(), 24 if name else 22))
            ax.text(x + (0.05 if name else 0.0), i + 0.14, text, va="top", fontsize=9)


def draw(demo: Path) -> Figure:
    """Return the picture of a finished demo."""
    summary: dict[str, Any] = json.loads((demo / "summary.json").read_text(encoding="utf-8"))
    history = read_json_lines(demo / "ppo" / "metrics.jsonl")
    metrics = {
        name: {key.partition(".")[2]: value for key, value in summary.items() if key.startswith(f"{name}.gold_")}
        for name in POLICIES
    }
    target, color = summary["ppo.kl_target"], plots.policy_colors(POLICIES)["ppo"]
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08, wspace=0.04)  # type: ignore[union-attr,call-arg]
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 3, height_ratios=[2.7, 1.75])
    scores, kl, wins = (figure.add_subplot(grid[0, i]) for i in range(3))
    plots.draw_scores(scores, history, color)
    plots.draw_kl(kl, history, color, target)
    plots.draw_win_rates(wins, Evaluation(metrics))
    for ax, title in ((scores, "PPO: reward"), (kl, "PPO: KL, steered to a target"), (wins, "Wins against SFT")):
        ax.set_title(title, fontsize=10.5)
    for ax in (scores, kl):
        ax.set_xlabel("iteration")
    wins.set_xlabel("by gold score, unseen prompts (%)")
    draw_samples(figure.add_subplot(grid[1, :]), harmless_samples((demo / "report.html").read_text("utf-8"), 2))
    return figure


def main() -> None:
    """Read the demo's folder, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--to", type=Path, default=Path("docs/demo.png"))
    arguments = parser.parse_args()
    with mpl.rc_context(plots.STYLE):
        draw(arguments.demo).savefig(arguments.to, dpi=DPI, metadata={"Software": None})
    print(arguments.to)


if __name__ == "__main__":
    main()
