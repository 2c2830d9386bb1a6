"""The metrics of an agreement report as readable rows: on the terminal and on the page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lightning.feedback.agreement import AgreementReport, LabelerReport
from rlhf_lightning.feedback.coefficients import Interval
from rlhf_lightning.outside_text import on_one_line

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

PAIRS_SHOWN = 12


@dataclass(frozen=True)
class Measure:
    """One metric of a labeler.

    Args:
        heading: its column heading.
        of: returns its interval from a report.
        note: how to read it.
        neutral: the value of an unbiased labeler; None: more is better.
    """

    heading: str
    of: Callable[[LabelerReport], Interval]
    note: str
    neutral: float | None = None


AGREES = (
    Measure("with others", lambda each: each.with_others, "Share of votes that say what another labeler said."),
    Measure("with self", lambda each: each.with_self, "Share of answers repeated when the task was asked again."),
    Measure("checks right", lambda each: each.checks, "Share of check tasks with the known answer."),
)
HABITS = (
    Measure("first position", lambda each: each.first_position, "Share of choices for what is shown first.", 0.5),
    Measure("longer answer", lambda each: each.longer, "Share of choices for the longer answer, in words."),
    Measure("others: longer", lambda each: each.others_longer, "The same share of everybody else."),
)


def percent(interval: Interval) -> tuple[str, str]:
    """Return a share and its interval, formatted.

    >>> percent(Interval(0.5, 0.404, 0.596, 100))
    ('50%', '40–60')
    """
    if math.isnan(interval.value):
        return "–", ""
    return f"{100 * interval.value:.0f}%", f"{100 * interval.low:.0f}–{100 * interval.high:.0f}"


def decimal(interval: Interval) -> tuple[str, str]:
    """Return a coefficient and its interval, formatted.

    >>> decimal(Interval(0.7, 0.61, 0.78, 40))
    ('0.70', '0.61 to 0.78')
    """
    if math.isnan(interval.value):
        return "–", ""
    return signed(interval.value), f"{signed(interval.low)} to {signed(interval.high)}"


def signed(value: float) -> str:
    """Return a coefficient with two digits and a true minus sign.

    >>> signed(-0.125), signed(-0.001)
    ('−0.12', '0.00')
    """
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def seconds(interval: Interval) -> tuple[str, str]:
    """Return a median time and its interval, formatted.

    >>> seconds(Interval(12.34, 11.0, 13.9, 40))
    ('12.3 s', '11.0–13.9')
    """
    if math.isnan(interval.value):
        return "–", ""
    return f"{interval.value:.1f} s", f"{interval.low:.1f}–{interval.high:.1f}"


def what_alpha_means(alpha: float) -> str:
    """Return Krippendorff's interpretation (2004, page 241) of such a value."""
    if math.isnan(alpha):
        return "not known: nothing was judged by two labelers, or nobody ever said anything else"
    if alpha >= 0.8:
        return "reliable (0.8 or more)"
    return "good for tentative conclusions (0.667 to 0.8)" if alpha >= 2 / 3 else "below 0.667: not reliable"


def terminal_tables(report: AgreementReport) -> list[RenderableType]:
    """Return the tables that rlhf-agreement prints, each within 80 columns for names of up to 12 letters."""
    from rich.text import Text

    raw, alpha = percent(report.raw), decimal(report.alpha)
    head = Text.assemble(
        f"raw agreement {raw[0]} ",
        (raw[1], "dim"),
        f"   Krippendorff's alpha {alpha[0]} ",
        (alpha[1], "dim"),
        f"\nalpha is {what_alpha_means(report.alpha.value)}; compared by two or more: {report.alpha.count}",
    )
    parts: list[RenderableType] = [head, _labelers(report, AGREES, True), _notes(AGREES)]
    parts += [_labelers(report, HABITS, False), _notes(HABITS, "Median time per answer.")]
    if report.kappa:
        parts.append(_kappas(report))
    if report.between_kinds:
        parts.append(_between(report))
    parts.append(_worth_a_look(report))
    return parts


def _notes(measures: tuple[Measure, ...], time: str = "") -> RenderableType:
    """Return how to read the columns of a table."""
    from rich.text import Text

    notes = [(each.heading, each.note) for each in measures] + ([("time", time)] if time else [])
    lines = [f"{heading}: {note[0].lower()}{note[1:].rstrip('.')}" for heading, note in notes]
    return Text("\n".join([*lines, "ranges: 95% intervals"]), style="dim")


def _labelers(report: AgreementReport, measures: tuple[Measure, ...], first: bool) -> RenderableType:
    table = _table("labeler", *(("kind", "answers") if first else ()), *(each.heading for each in measures))
    if not first:
        table.add_column("time", justify="right")
    for labeler in report.labelers:
        cells = [_cell(percent(each.of(labeler))) for each in measures]
        if first:
            table.add_row(on_one_line(labeler.name), labeler.kind, str(labeler.answers), *cells)
        else:
            table.add_row(on_one_line(labeler.name), *cells, _cell(seconds(labeler.seconds)))
    return table


def _kappas(report: AgreementReport) -> RenderableType:
    """Return the pairs of labelers that agree least."""
    pairs = sorted(report.kappa.items(), key=lambda each: (math.isnan(each[1][0]), each[1][0]))
    more = f" (the lowest {PAIRS_SHOWN} of {len(pairs)})" if len(pairs) > PAIRS_SHOWN else ""
    table = _table(f"Cohen's kappa{more}", "kappa", "compared")
    for (one, other), (value, count) in pairs[:PAIRS_SHOWN]:
        table.add_row(on_one_line(f"{one}, {other}"), "–" if math.isnan(value) else signed(value), str(count))
    return table


def _between(report: AgreementReport) -> RenderableType:
    table = _table("kinds of labelers", "agree", "pairs of votes")
    for kinds, interval in report.between_kinds.items():
        table.add_row(kinds.replace("-", " and "), _cell(percent(interval)), str(interval.count))
    return table


def _worth_a_look(report: AgreementReport) -> RenderableType:
    from rich.text import Text

    lines = [f"worth a look: {on_one_line(each.name)}: {reason}" for each in report.labelers for reason in each.look]
    return Text("\n".join(lines) or "worth a look: nobody")


def _cell(written: tuple[str, str]) -> RenderableType:
    from rich.text import Text

    value, interval = written
    return Text.assemble(value, (f" {interval}" if interval else "", "dim"))


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="left" if heading == "kind" else "right")
    return table
