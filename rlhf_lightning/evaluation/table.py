"""The figures of an evaluation as rows for people: on the terminal and in the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.reward_accuracy import MEAN, mean_of_categories
from rlhf_lightning.evaluation.reward_accuracy import Table as Accuracies
from rlhf_lightning.evaluation.win_rate import WinRate
from rlhf_lightning.outside_text import on_one_line

if TYPE_CHECKING:
    from rich.table import Table
    from rich.table import Table as RichTable
    from rich.text import Text

HEADINGS = {
    "gold_mean": "gold score",
    "proxy_mean": "proxy score",
    "gold_win_rate": "wins by gold, %",
    "proxy_win_rate": "wins by proxy, %",
    "judge_win_rate": "wins by the judge, %",
    "judge_win_rate_lc": "wins by the judge at equal lengths, %",
    "judge_first": "judge: chance of what is shown first, %",
    "judge_consistent": "judge: the same in both orders, %",
    "kl": "KL to the reference, nats per response",
    "kl_per_token": "KL to the reference, nats per token",
    "length": "length, tokens",
    "distinct_1": "distinct words, %",
    "distinct_2": "distinct word pairs, %",
    "self_bleu": "self-BLEU, %",
    "eos_rate": "ended by EOS, %",
    "unsafe_refusal_rate": "unsafe prompts refused, %",
    "over_refusal_rate": "other prompts refused, %",
    "unsafe_refusal_rate_corrected": "unsafe, less the detector's error, %",
    "over_refusal_rate_corrected": "other, less the detector's error, %",
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
        key = f"{stem}_vs_{evaluation.baseline}" if "win_rate" in stem else stem
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


def accuracy_table(table: Accuracies) -> RichTable:
    """A rich table, one row a category and one column a reward, with the number of pairs."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", collapse_padding=True)
    for name in ("pairs ranked right, %", "pairs", *table):
        shown.add_column(Text(on_one_line(name)), justify="left" if name.startswith("pairs r") else "right")
    first = next(iter(table.values()))
    for category, accuracy in first.items():
        cells = [_share(row[category].share) for row in table.values()]
        shown.add_row(Text(on_one_line(category)), str(accuracy.pairs), *cells)
    if len(first) > 2:
        shown.add_row(MEAN, "", *(f"{100 * mean_of_categories(row):.1f}" for row in table.values()))
    return shown


def _share(share: WinRate) -> Text:
    from rich.text import Text

    return Text.assemble(f"{100 * share.rate:.1f}", (f" {100 * share.low:.0f}–{100 * share.high:.0f}", "dim"))


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
