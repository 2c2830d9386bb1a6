"""The reference of the Python API: every public name of every public package, for mkdocstrings to fill in."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "rlhf_lightning"


def public_names() -> dict[str, list[str]]:
    """Return package -> the names in its `__all__`, for every package that has one."""
    found = {}
    for file in sorted(PACKAGE.glob("*/__init__.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                found[file.parent.name] = sorted(ast.literal_eval(node.value), key=str.lower)
    return found


def python_pages() -> dict[str, str]:
    """Return path -> Markdown of a page per public package, and one that lists them."""
    pages = {}
    rows = []
    for package, names in public_names().items():
        about = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))) or ""
        entries = "\n\n".join(f"::: rlhf_lightning.{package}.{name}" for name in names)
        pages[f"reference/python/{package}.md"] = f"# rlhf_lightning.{package}\n\n{about}\n\n{entries}\n"
        rows.append(f"- [`rlhf_lightning.{package}`]({package}.md): {about.partition(chr(10))[0]}")
    listed = "\n".join(rows)
    pages["reference/python/index.md"] = f"# Python API\n\nThe public names, package by package.\n\n{listed}\n"
    return pages
