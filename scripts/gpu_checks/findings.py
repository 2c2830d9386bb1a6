"""The findings of a check, and their table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "failed", "not measured"]


class NotMeasuredError(Exception):
    """A package or a feature that a check needs is not on this machine; the message says which."""


@dataclass(frozen=True)
class Finding:
    """A measured result.

    Args:
        what: what is measured.
        value: its value; None if there is nothing to count.
        unit: of the value, such as `tokens/s`.
        bound: what the value must be, in words; "" if it is only recorded.
        ok: whether it is within the bound.
    """

    what: str
    value: float | None = None
    unit: str = ""
    bound: str = ""
    ok: bool = True


@dataclass
class Section:
    """The outcome of a check."""

    name: str
    status: Status
    seconds: float
    findings: list[Finding]
    note: str = ""  # the message of an error, or what is missing

    @property
    def failed(self) -> bool:
        """Return whether it broke, or a result is outside its bound."""
        return self.status == "failed" or not all(finding.ok for finding in self.findings)


def at_most(what: str, value: float, limit: float, unit: str = "") -> Finding:
    """Return a result with an upper bound; one that is not a number is outside."""
    return Finding(what, value, unit, f"<= {limit:.3g}", ok=value <= limit)


def holds(what: str, condition: bool, value: float | None = None, unit: str = "") -> Finding:
    """Return a result that either holds or does not."""
    return Finding(what, value, unit, "holds", ok=condition)


def table(sections: Iterable[Section]) -> str:
    """Return one row per result, and one per section that broke or was not measured."""
    rows = [("section", "what", "figure", "must be", "")]
    for section in sections:
        for finding in section.findings:
            verdict = "" if not finding.bound else "ok" if finding.ok else "WRONG"
            rows.append((section.name, finding.what, _figure(finding), finding.bound, verdict))
        if section.status != "ok":
            rows.append((section.name, section.note, "", "", section.status.upper()))
    widths = [min(70, max(len(row[column]) for row in rows)) for column in range(5)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _figure(finding: Finding) -> str:
    return "" if finding.value is None else f"{finding.value:.4g} {finding.unit}".rstrip()


def as_json(section: Section) -> dict[str, Any]:
    """Return plain containers."""
    findings = [vars(finding) for finding in section.findings]
    return {**vars(section), "failed": section.failed, "findings": findings}
