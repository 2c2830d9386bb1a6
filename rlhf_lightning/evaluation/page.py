"""report.html: everything in one file, readable on a phone, on paper and offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.evaluation.plots import label, policy_colors
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.table import metric_rows, reading_notes
from rlhf_lightning.outside_text import for_html, html_page


@dataclass(frozen=True)
class Figure:
    """A PNG and its caption."""

    png: bytes
    caption: str
    small: bool = False


STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1c2126;
  font: 16px/1.55 "Iowan Old Style", Charter, "Palatino Linotype", Georgia, serif; }
main { max-width: 68rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 3rem 0 .8rem; }
p.note { color: #6b7480; max-width: 44rem; margin: 0 0 1.2rem; }
.scroll + p.note { font-size: .88rem; margin-top: .8rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .9rem .5rem 0; border-bottom: 1px solid #e6e9ed; }
thead th { border-bottom: 1.5px solid #1c2126; font-size: .95rem; }
.figures th { font-weight: 400; }
.figures td, .figures thead th + th { text-align: right; font-variant-numeric: tabular-nums; }
.interval { color: #6b7480; font-size: .85em; white-space: nowrap; }
.scroll { overflow-x: auto; }
.grid { display: grid; gap: 2rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.grid.small { grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; }
figcaption { color: #6b7480; font-size: .88rem; line-height: 1.45; padding: .3rem .3rem 0; }
.samples td { font-size: .93rem; line-height: 1.45; min-width: 11rem; }
.score { font-weight: 700; font-variant-numeric: tabular-nums; margin-right: .35em; }
.kind { color: #6b7480; font-size: .82rem; display: block; }
@media print { main { max-width: none; padding: 0; } figure, tr { break-inside: avoid; } }
"""


def render_page(
    title: str, evaluation: Evaluation, figures: Sequence[Figure], samples: Sequence[Mapping[str, Any]]
) -> str:
    """Return the whole document. All text is escaped: prompts and responses are data."""
    large = "".join(_figure(figure) for figure in figures if not figure.small)
    small = "".join(_figure(figure) for figure in figures if figure.small)
    names = ", ".join(label(name) for name in evaluation.metrics)
    parts = [
        f"<h1>{for_html(title)}</h1>",
        f'<p class="note">{for_html(names)} on {_prompts(evaluation)} held-out prompts.</p>',
        f"<section>{_metric_table(evaluation)}{_notes(evaluation)}</section>",
        f'<section><h2>Training and its result</h2><div class="grid">{large}</div></section>' if large else "",
        _sample_table(evaluation, samples) if samples else "",
        f'<section><h2>Losses and details</h2><div class="grid small">{small}</div></section>' if small else "",
    ]
    return html_page(title, STYLE, parts)


def signed(score: float) -> str:
    """Return a score with one decimal and a true minus sign.

    >>> signed(0.25), signed(-1.0)
    ('+0.2', '−1.0')
    """
    return f"{score:+.1f}".replace("-", "−")


def _prompts(evaluation: Evaluation) -> int:
    return len({row["prompt"] for row in evaluation.samples})


def _heads(evaluation: Evaluation) -> str:
    colors = policy_colors(list(evaluation.metrics))
    return "".join(
        f'<th scope="col" style="color:{colors[name]}">{for_html(label(name))}</th>' for name in evaluation.metrics
    )


def _metric_table(evaluation: Evaluation) -> str:
    body = ""
    for heading, cells in metric_rows(evaluation):
        values = "".join(
            f'<td>{cell.value}<span class="interval"> {cell.interval}</span></td>'
            if cell.interval
            else f"<td>{cell.value}</td>"
            for cell in cells
        )
        body += f'<tr><th scope="row">{for_html(heading)}</th>{values}</tr>'
    return (
        '<div class="scroll"><table class="figures"><thead><tr><th></th>'
        f"{_heads(evaluation)}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _notes(evaluation: Evaluation) -> str:
    notes = "<br>".join(for_html(note) for note in reading_notes(evaluation))
    return f'<p class="note">{notes}</p>' if notes else ""


def _sample_table(evaluation: Evaluation, samples: Sequence[Mapping[str, Any]]) -> str:
    scored = "gold" if "gold" in samples[0]["policies"][evaluation.baseline] else "proxy"
    body = ""
    for row in samples:
        kind = f'<span class="kind">{for_html(str(row["kind"]).replace("_", " "))}</span>' if row["kind"] else ""
        cells = "".join(f"<td>{_answer(row['policies'][name], scored)}</td>" for name in evaluation.metrics)
        body += f"<tr><td>{for_html(row['prompt'])}{kind}</td>{cells}</tr>"
    note = f"The first prompts of each kind, not picked. In front of each response its {scored} score."
    return (
        f'<section><h2>Side by side</h2><p class="note">{note}</p><div class="scroll"><table class="samples"><thead>'
        f'<tr><th scope="col">Prompt</th>{_heads(evaluation)}</tr></thead><tbody>{body}</tbody></table></div></section>'
    )


def _answer(answer: Mapping[str, Any], scored: str) -> str:
    score = f'<span class="score">{signed(answer[scored])}</span>' if scored in answer else ""
    return score + (for_html(answer["response"]) or "<em>(nothing)</em>")


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.png).decode("ascii")
    caption = f"<figcaption>{for_html(figure.caption)}</figcaption>" if figure.caption else ""
    alternative = for_html(figure.caption or "loss over optimiser steps")
    return f'<figure><img alt="{alternative}" src="data:image/png;base64,{data}">{caption}</figure>'
