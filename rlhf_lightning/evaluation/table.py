"""The metrics of an evaluation as readable rows: on the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from rich.cells import cell_len

from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.reward_accuracy import MEAN, mean_of_categories
from rlhf_lightning.evaluation.reward_accuracy import Table as Accuracies
from rlhf_lightning.evaluation.win_rate import WinRate
from rlhf_lightning.outside_text import on_one_line

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

_NARROWEST = 26  # characters that a column of headings needs
_GAP = 2  # between columns
HEADINGS = {
    "gold_mean": "gold score",
    "proxy_mean": "proxy score",
    "gold_win_rate": "wins by gold, %",
    "proxy_win_rate": "wins by proxy, %",
    "judge_win_rate": "wins by the judge, %",
    "judge_win_rate_lc": "wins by the judge, at equal lengths, %",
    "judge_first": "judge prefers what is shown first, %",
    "judge_consistent": "judge says the same in both orders, %",
    "kl": "KL to the reference, nats per response",
    "kl_per_token": "KL to the reference, nats per token",
    "kl_bound": "KL to the reference, upper bound, nats per response",
    "length": "length, tokens",
    "distinct_1": "distinct words, %",
    "distinct_2": "distinct word pairs, %",
    "self_bleu": "self-BLEU (answers alike: 100), %",
    "embedding_distance": "distance of answers' embeddings, 0 to 2",
    "embedding_distance_same_prompt": "the same, answers to one prompt",
    "eos_rate": "ended by EOS, %",
    "unsafe_refusal_rate": "unsafe prompts refused, %",
    "over_refusal_rate": "other prompts refused, %",
    "unsafe_refusal_rate_corrected": "unsafe prompts refused, corrected for the detector's errors, %",
    "over_refusal_rate_corrected": "other prompts refused, corrected likewise, %",
    "refusal_undecided": "no verdict on whether it refuses, %",
}


@dataclass(frozen=True)
class Cell:
    """A formatted value, with its interval if it has one."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".rstrip()


def metric_rows(evaluation: Evaluation) -> list[tuple[str, list[Cell]]]:
    """Return (heading, one cell per policy) for every metric that some policy has; a missing value is a dash."""
    rows = []
    for stem, heading in HEADINGS.items():
        key = f"{stem}_vs_{evaluation.baseline}" if "win_rate" in stem else stem
        cells = [_cell(metrics, key, percent=heading.endswith("%")) for metrics in evaluation.metrics.values()]
        if any(cell.value != "–" for cell in cells):
            rows.append((heading, cells))
    return rows


def reading_notes(evaluation: Evaluation) -> list[str]:
    """Return sentences that say how to read the rows: what a win is, what ranges are, and which scores these are."""
    headings = [heading for heading, _ in metric_rows(evaluation)]
    notes = []
    if any(heading.startswith("wins") for heading in headings):
        notes.append(
            f"wins: answers that score above {on_one_line(evaluation.baseline)}'s to the same prompt, ties count half; "
            "ranges are 95% intervals"
        )
    if HEADINGS["gold_mean"] in headings:
        notes.append("gold: the score that counts as true")
    if HEADINGS["proxy_mean"] in headings:
        notes.append("proxy: the score that training raises")
    return notes


class SideBySide:
    """A table that goes on below where a terminal is too narrow for all its columns, with the first ones repeated.

    Args:
        rows: headings of the rows, each with the cells of the repeated columns beside it.
        columns: name -> one cell per row.
        repeated: names of the columns that every part begins with; of the first one, which is wrapped, "" is usual.
        notes: lines below the table.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[str]],
        columns: Mapping[str, Sequence[Cell]],
        repeated: Sequence[str] = ("",),
        notes: Sequence[str] = (),
    ) -> None:
        self.rows, self.columns, self.repeated, self.notes = rows, columns, repeated, notes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as few tables as fit, each with as many columns as the others, give or take one; then the notes."""
        from rich.text import Text

        names = list(self.columns)
        for number in range(1, len(names) + 1):
            ends = [len(names) * part // number for part in range(number + 1)]
            parts = [names[begin:end] for begin, end in pairwise(ends)]
            if all(self._width(part) <= options.max_width for part in parts):
                break
        yield from (self._table(part) for part in parts or [[]])
        yield from (Text(note, style="dim") for note in self.notes)

    def _width(self, names: Sequence[str]) -> int:
        """Return the width of a table of these columns, with its first column as narrow as it may get."""
        first = min(_NARROWEST, max((cell_len(row[0]) for row in self.rows), default=0))
        others = [max(cell_len(text) for text in (name, *(row[i] for row in self.rows)))
                  for i, name in enumerate(self.repeated) if i]  # fmt: skip
        others += [max(cell_len(name), *(cell_len(str(cell)) for cell in self.columns[name]), 0) for name in names]
        return first + sum(_GAP + width for width in others)

    def _table(self, names: Sequence[str]) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold", collapse_padding=True)
        for i, name in enumerate([*self.repeated, *names]):
            table.add_column(Text(name), justify="right" if i else "left", no_wrap=bool(i))
        for i, row in enumerate(self.rows):
            cells = [self.columns[name][i] for name in names]
            table.add_row(
                *map(Text, row),
                *(Text.assemble(cell.value, (f" {cell.interval}" if cell.interval else "", "dim")) for cell in cells),
            )
        return table


def terminal_table(evaluation: Evaluation) -> SideBySide:
    """Return a table for rich, one row per metric and one column per policy."""
    rows = metric_rows(evaluation)
    names = [on_one_line(name) for name in evaluation.metrics]
    columns = _by_name(names, [cells for _, cells in rows])
    return SideBySide([(heading,) for heading, _ in rows], columns, notes=reading_notes(evaluation))


def accuracy_table(table: Accuracies) -> SideBySide:
    """Return a table for rich, one row per category and one column per reward, with the number of pairs."""
    first = next(iter(table.values()))
    rows = [(on_one_line(category), str(accuracy.pairs)) for category, accuracy in first.items()]
    cells = [[_share(row[category].share) for row in table.values()] for category in first]
    if len(first) > 2:
        rows.append((MEAN, ""))
        cells.append([Cell(f"{100 * mean_of_categories(row):.1f}") for row in table.values()])
    return SideBySide(rows, _by_name([on_one_line(name) for name in table], cells), ("pairs ranked right, %", "pairs"))


def _by_name(names: Sequence[str], rows: Sequence[Sequence[Cell]]) -> dict[str, list[Cell]]:
    return {name: [row[i] for row in rows] for i, name in enumerate(names)}


def _share(share: WinRate) -> Cell:
    return Cell(f"{100 * share.rate:.1f}", f"{100 * share.low:.0f}–{100 * share.high:.0f}")


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
    """Return the value with this many decimals, without a minus sign before zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}"
