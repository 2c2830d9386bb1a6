"""The figures of an evaluation as rows for people: on the terminal and in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.outside_text import on_one_line

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS = {
    "gold_mean": "gold score",
    "proxy_mean": "proxy score",
    "gold_win_rate": "wins by gold, %",
    "proxy_win_rate": "wins by proxy, %",
    "kl": "KL to the reference, nats per response",
    "kl_per_token": "KL to the reference, nats per token",
    "length": "length, tokens",
    "distinct_1": "distinct words, %",
    "distinct_2": "distinct word pairs, %",
    "eos_rate": "ended by EOS, %",
    "unsafe_refusal_rate": "unsafe prompts refused, %",
    "over_refusal_rate": "other prompts refused, %",
}


@dataclass(frozen=True)
class Cell:
    """A value as written, and its interval where it has one."""

    value: str
    interval: str = ""


def metric_rows(evaluation: Evaluation) -> list[tuple[str, list[Cell]]]:
    """(heading, one cell a policy) for every metric that some policy has; a missing one is a dash."""
    rows = []
    for stem, heading in HEADINGS.items():
        key = f"{stem}_vs_{evaluation.baseline}" if stem.endswith("win_rate") else stem
        cells = [_cell(metrics, key, percent=heading.endswith("%")) for metrics in evaluation.metrics.values()]
        if any(cell.value != "–" for cell in cells):
            rows.append((heading, cells))
    return rows


def terminal_table(evaluation: Evaluation) -> Table:
    """A rich table, one row a metric and one column a policy: it fits 80 columns with four policies."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column("")
    for name in evaluation.metrics:
        table.add_column(Text(on_one_line(name)), justify="right")
    for heading, cells in metric_rows(evaluation):
        row = [Text.assemble(cell.value, (f" {cell.interval}" if cell.interval else "", "dim")) for cell in cells]
        table.add_row(heading, *row)
    return table


def _cell(metrics: dict[str, float], key: str, percent: bool) -> Cell:
    if key not in metrics:
        return Cell("–")
    scale, digits = (100.0, 0) if percent else (1.0, 1 if key == "length" else 2)
    value = _written(scale * metrics[key], digits)
    if f"{key}_low" not in metrics:
        return Cell(value)
    low, high = (scale * metrics[f"{key}_{end}"] for end in ("low", "high"))
    return Cell(value, f"{_written(low, digits)}–{_written(high, digits)}")


def _written(value: float, digits: int) -> str:
    """The value with so many decimals, and no minus before a zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"
