"""Cells of built pages that hold prose: on a phone they keep a width that can be read, and the table scrolls."""

from __future__ import annotations

import re

PROSE = 45
"""A cell with more characters than this is prose."""
_CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)


def with_prose_marked(page: str) -> str:
    """Return a page of HTML whose long cells have the class `prose` (docs/site.css)."""
    return _CELL.sub(_marked, page)


def _marked(cell: re.Match[str]) -> str:
    text = re.sub(r"<[^>]*>", "", cell[1])
    return f'<td class="prose">{cell[1]}</td>' if len(text) > PROSE else cell[0]
