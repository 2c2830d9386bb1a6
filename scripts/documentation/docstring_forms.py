"""An extension of griffe: forms of our docstrings that Google's style does not have.

Arguments that share a line (`gamma, lam: ...`) each get it, and examples without a heading of their
own become code.
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Any

import griffe

SHARED = re.compile(r"^(?P<indent> +)(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)+): (?P<text>.*)$")
HEADING = re.compile(r"^ *(Args|Attributes):$")


def one_name_per_line(docstring: str) -> str:
    """Return the docstring with a line for each of the arguments that share one."""
    lines = docstring.splitlines()
    written: list[str] = []
    inside = False
    while lines:
        line = lines.pop(0)
        inside = bool(HEADING.match(line)) or (inside and (not line or line.startswith(" ")))
        shared = SHARED.match(line) if inside else None
        if shared is None:
            written.append(line)
            continue
        deeper = [*takewhile(lambda each, indent=shared["indent"]: each.startswith(f"{indent} "), lines)]
        del lines[: len(deeper)]
        for name in shared["names"].split(", "):
            written += [f"{shared['indent']}{name}: {shared['text']}", *deeper]
    return "\n".join(written)


def examples_as_code(docstring: str) -> str:
    """Return the docstring with its examples in fences, where they are not indented under a heading."""
    block = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
    return block.sub(lambda match: f"```pycon\n{match[0]}\n```", docstring)


class DocstringForms(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of a class, a function or an attribute."""
        if not obj.is_alias and obj.docstring is not None:
            obj.docstring.value = examples_as_code(one_name_per_line(obj.docstring.value))
