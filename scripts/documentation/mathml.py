"""Formulas of built pages as MathML, which browsers draw themselves: no script and no font is loaded."""

from __future__ import annotations

import html
import re

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)


def with_mathml(page: str) -> str:
    """Return a page of HTML with every TeX formula as MathML."""
    return FORMULA.sub(_mathml, page)


def _mathml(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    block = match[2] == "["
    formula = convert(html.unescape(match[3]), display="block" if block else "inline")
    return f'<div class="formula">{formula}</div>' if block else formula
