"""agreement.html: everything in one file, for light and dark screens, phones and paper, without scripts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from rlhf_lightning.feedback.agreement import AgreementReport, LabelerReport
from rlhf_lightning.feedback.agreement_table import AGREES, Measure, decimal, percent, seconds, signed, what_alpha_means
from rlhf_lightning.feedback.coefficients import Interval
from rlhf_lightning.outside_text import for_html, html_page

MOST_IN_A_GRID = 16  # labelers in a table of kappas
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --paper: #fff; --muted: #5c6570; --line: #d9dee4; --track: #eef1f4;
  --dot: #1f66b3; --range: #8fb6de; --mark: #c2571a; --good: 31 102 179; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ebee; --paper: #15181c; --muted: #a2abb5; --line: #363d45; --track: #23282e;
    --dot: #7db4ee; --range: #3d6a99; --mark: #f0935a; --good: 90 150 220; }
}
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 "Iowan Old Style", Charter, "Palatino Linotype", Georgia, serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.8rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0 0 .2rem; }
p.note { color: var(--muted); max-width: 44rem; margin: 0 0 1rem; font-size: .93rem; }
.tiles { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); margin: 1.6rem 0 0; }
.tile { border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.7rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .88rem; }
.look { border-left: 4px solid var(--mark); padding: .2rem 0 .2rem 1rem; margin: 0; list-style: none; }
.look li { margin: .3rem 0; }
.plots { display: grid; gap: 2.2rem 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.plot { margin: 0; min-width: 0; }
.plot figcaption { color: var(--muted); font-size: .88rem; line-height: 1.45; margin-bottom: .6rem; }
.row { display: grid; grid-template-columns: minmax(4rem, 8.5rem) 1fr 6.4rem; gap: .7rem; align-items: center;
  font-size: .9rem; min-height: 1.75rem; }
.row > :first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row > :last-child { font-variant-numeric: tabular-nums; white-space: nowrap; }
.track { position: relative; height: 1rem; background: var(--track); border-radius: .2rem; }
.track i { position: absolute; top: 50%; display: block; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.track .range { height: .38rem; margin-top: -.19rem; background: var(--range); border-radius: .19rem; min-width: 2px; }
.track .dot { width: .7rem; height: .7rem; margin: -.35rem 0 0 -.35rem; border-radius: 50%; background: var(--dot); }
.track .neutral { top: 0; height: 100%; width: 2px; margin-left: -1px; background: var(--muted); }
.track .others { top: 0; height: 100%; width: 3px; margin-left: -1.5px; background: var(--mark); }
.axis { color: var(--muted); font-size: .78rem; }
.axis > span { display: flex; justify-content: space-between; }
.dim { color: var(--muted); font-size: .85em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: right; padding: .4rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 1.5px solid var(--ink); font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
td.cell { min-width: 2.6rem; text-align: center; }
@media (max-width: 34rem) {
  .row { grid-template-columns: 1fr 6.4rem; gap: 0 .7rem; margin-bottom: .3rem; }
  .row > :first-child { grid-column: 1 / -1; line-height: 1.3; }
}
@media print { main { max-width: none; padding: 0; } .plot, .tile, tr { break-inside: avoid; } }
"""


def render_agreement(report: AgreementReport, title: str, facts: Sequence[str]) -> str:
    """Return the whole document. Labelers' names are data and are escaped.

    Args:
        report: the results.
        title: title of the page.
        facts: lines about the store.
    """
    parts = [
        f"<h1>{for_html(title)}</h1>",
        f'<p class="note">{"<br>".join(for_html(fact) for fact in facts)}</p>',
        _tiles(report),
        _look(report),
        _section("How far labelers agree", _agreement_plots(report)),
        _section("Habits", _habit_plots(report)),
        _kappas(report),
        _everything(report),
    ]
    return html_page(title, STYLE, parts)


def _tiles(report: AgreementReport) -> str:
    raw, alpha = percent(report.raw), decimal(report.alpha)
    kappas = sorted(value for value, _ in report.kappa.values() if not math.isnan(value))
    tiles = [
        (raw[0], f"raw agreement {_between(raw)}: pairs of votes on one comparison that say the same"),
        (alpha[0], f"Krippendorff's alpha {_between(alpha)}: {what_alpha_means(report.alpha.value)}"),
    ]
    if kappas:
        middle = kappas[len(kappas) // 2]
        text = f"median of Cohen's kappa of {len(kappas)} pairs of labelers; the lowest is {signed(kappas[0])}"
        tiles.append((signed(middle), text))
    body = "".join(f'<div class="tile"><b>{value}</b><span>{for_html(text)}</span></div>' for value, text in tiles)
    return f'<div class="tiles">{body}</div>'


def _between(written: tuple[str, str]) -> str:
    return f"({written[1]})" if written[1] else ""


def _look(report: AgreementReport) -> str:
    rows = [(each.name, reason) for each in report.labelers for reason in each.look]
    body = "".join(f"<li><b>{for_html(name)}</b>: {for_html(reason)}</li>" for name, reason in rows)
    note = (
        "A reason is given where chance explains it in about one labeler of 370. It is a reason to talk, not a verdict."
    )
    found = f'<ul class="look">{body}</ul>' if body else "<p>Nobody.</p>"
    return f'<h2>Worth a look</h2><p class="note">{note}</p>{found}'


def _section(heading: str, plots: Iterable[str]) -> str:
    body = "".join(plots)
    return f'<h2>{heading}</h2><div class="plots">{body}</div>' if body else ""


def _agreement_plots(report: AgreementReport) -> Iterable[str]:
    for measure in AGREES:
        yield _plot(measure.heading, measure.note, [_row(each, measure) for each in report.labelers])
    rows = [(kinds.replace("-", ", "), interval, "") for kinds, interval in report.between_kinds.items()]
    if any(len(set(kinds.split("-"))) > 1 for kinds in report.between_kinds):
        yield _plot("People against judges", "Share of pairs of votes that say the same, by kind of labeler.", rows)


def _habit_plots(report: AgreementReport) -> Iterable[str]:
    first = Measure("First position", lambda each: each.first_position, "", 0.5)
    note = "Share of choices for the answer that is shown first; the order is random, so 50% (the line) means no habit."
    yield _plot(first.heading, note, [_row(each, first) for each in report.labelers])
    longer = [
        (
            each.name,
            each.longer,
            "" if math.isnan(each.others_longer.value) else _at("others", each.others_longer.value),
        )
        for each in report.labelers
    ]
    note = "Share of choices for the longer answer. Longer may be better: the orange mark is everybody else's share."
    yield _plot("Longer answer", note, longer)
    times = [each.seconds for each in report.labelers if not math.isnan(each.seconds.value)]
    if times:
        most = max(each.high for each in times) or 1.0
        rows = [(each.name, each.seconds, "") for each in report.labelers]
        yield _plot("Time per answer", "Median with its interval.", rows, most, seconds, f"{most:.0f} s")
    fast = [(each.name, each.fast, "") for each in report.labelers]
    yield _plot("In a hurry", "Share of answers within a quarter of everybody's median time.", fast)


Row = tuple[str, Interval, str]  # name, value, marks


def _row(labeler: LabelerReport, measure: Measure) -> Row:
    return labeler.name, measure.of(labeler), "" if measure.neutral is None else _at("neutral", measure.neutral)


def _plot(
    heading: str,
    note: str,
    rows: Sequence[Row],
    most: float = 1.0,
    write: Callable[[Interval], tuple[str, str]] = percent,
    end: str = "100%",
) -> str:
    """Return one line per labeler: a dot with its interval on a track from 0 to `most`; empty if nobody has a value."""
    known = [row for row in rows if not math.isnan(row[1].value)]
    if not known:
        return ""
    lines = "".join(_line(name, interval, marks, most, write) for name, interval, marks in known)
    axis = f'<div class="row axis"><span></span><span><span>0</span><span>{end}</span></span><span></span></div>'
    head = heading[:1].upper() + heading[1:]
    return (
        f'<figure class="plot"><h3>{for_html(head)}</h3><figcaption>{for_html(note)}</figcaption>{lines}{axis}</figure>'
    )


def _line(name: str, interval: Interval, marks: str, most: float, write: Callable[[Interval], tuple[str, str]]) -> str:
    low, high, value = (min(1.0, each / most) for each in (interval.low, interval.high, interval.value))
    written, ends = write(interval)
    drawn = marks + f'<i class="range" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
    drawn += _at("dot", value)
    said = f'{written} <span class="dim">{ends}</span>'
    label = f'<span title="{for_html(name)}">{for_html(name)}</span>'
    return f'<div class="row">{label}<span class="track">{drawn}</span><span>{said}</span></div>'


def _at(kind: str, place: float) -> str:
    return f'<i class="{kind}" style="left:{100 * place:.2f}%"></i>'


def _kappas(report: AgreementReport) -> str:
    names = [each.name for each in report.labelers if any(each.name in pair for pair in report.kappa)]
    if not names:
        return ""
    note = "Cohen's kappa of each two labelers on what both judged: 1 is full agreement, 0 that of chance."
    if len(names) > MOST_IN_A_GRID:
        least = sorted((value, pair) for pair, (value, _) in report.kappa.items() if not math.isnan(value))[:20]
        rows = "".join(
            f"<tr><td>{for_html(', '.join(pair))}</td><td>{signed(value)}</td></tr>" for value, pair in least
        )
        table = f"<thead><tr><th>the lowest {len(least)}</th><th>kappa</th></tr></thead><tbody>{rows}</tbody>"
    else:
        head = "".join(f'<th scope="col">{for_html(name)}</th>' for name in names)
        rows = "".join(
            f'<tr><th scope="row">{for_html(one)}</th>{"".join(_kappa(report, one, other) for other in names)}</tr>'
            for one in names
        )
        table = f"<thead><tr><th></th>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<h2>Pairs of labelers</h2><p class="note">{note}</p><div class="scroll"><table>{table}</table></div>'


def _kappa(report: AgreementReport, one: str, other: str) -> str:
    value, count = report.kappa.get((one, other)) or report.kappa.get((other, one)) or (math.nan, 0)
    if one == other or not count:
        return '<td class="cell dim">–</td>' if one != other else '<td class="cell"></td>'
    if math.isnan(value):
        return f'<td class="cell" title="{count} compared; both always say the same">?</td>'
    shade = max(0.0, min(1.0, value)) * 0.45
    style = f"background:rgb(var(--good) / {shade:.2f})"
    return f'<td class="cell" style="{style}" title="{count} compared">{signed(value)}</td>'


def _everything(report: AgreementReport) -> str:
    heads = [
        "labeler",
        "kind",
        "answers",
        "with others",
        "with self",
        "checks right",
        "first position",
        "longer answer",
    ]
    head = "".join(f'<th scope="col">{each}</th>' for each in [*heads, "time"])
    body = ""
    for each in report.labelers:
        shares = [each.with_others, each.with_self, each.checks, each.first_position, each.longer]
        cells = "".join(_td(percent(share)) for share in shares) + _td(seconds(each.seconds))
        body += f"<tr><td>{for_html(each.name)}</td><td>{each.kind}</td><td>{each.answers}</td>{cells}</tr>"
    note = "Values with their intervals of 95%; agreement.json has them all."
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>Everything</h2><p class="note">{note}</p><div class="scroll">{table}</div>'


def _td(written: tuple[str, str]) -> str:
    return f'<td>{written[0]} <span class="dim">{written[1]}</span></td>'
