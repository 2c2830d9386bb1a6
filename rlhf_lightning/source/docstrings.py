"""What a docstring says about each argument: its sections `Args:` and `Attributes:`, in Google's form."""

from __future__ import annotations

import ast
import inspect
import re

from rlhf_lightning.source.definitions import Definition

_SECTION = re.compile(r"^ *(Args|Arguments|Attributes|Parameters):$")
_ARGUMENT = re.compile(r"^(?P<names>\*{0,2}\w+(?:, ?\*{0,2}\w+)*)(?: \([^)]*\))?:(?: (?P<text>.*))?$")


def argument_lines(docstring: str) -> dict[str, str]:
    """Return the text about each argument, on one line.

    Names that share a text (`gamma, lam: discount and lambda`) each get the whole of it.

    >>> argument_lines("Return.\\n\\nArgs:\\n    a, b: both\\n        of them.\\n    c (int): another.")
    {'a': 'both of them.', 'b': 'both of them.', 'c': 'another.'}
    """
    found: dict[str, str] = {}
    names: list[str] = []
    inside, indent, first = False, 0, 0
    for line in inspect.cleandoc(docstring).splitlines():
        depth = len(line) - len(line.lstrip())
        if _SECTION.match(line):
            inside, indent, names = True, depth, []
        elif not inside or not line.strip():
            continue
        elif depth <= indent:
            inside = False
        else:
            entry = _ARGUMENT.match(line.strip()) if not names or depth <= first else None
            if entry is not None:
                first = depth
                names = [name.strip(" *") for name in entry["names"].split(",")]
                found |= dict.fromkeys(names, entry["text"] or "")
            else:
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def documented_arguments(found: Definition) -> dict[str, str]:
    """Return what a class (its own docstring, then its constructor's) or a function says about its arguments."""
    merged: dict[str, str] = {}
    for each in found.node.body if isinstance(found.node, ast.ClassDef) else ():
        if isinstance(each, ast.FunctionDef) and each.name == "__init__":
            merged = argument_lines(ast.get_docstring(each) or "")
    return merged | argument_lines(docstring(found))


def docstring(found: Definition) -> str:
    """Return the docstring of a class or a function; empty where it has none."""
    documented = isinstance(found.node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    return (ast.get_docstring(found.node) or "") if documented else ""  # type: ignore[arg-type]
