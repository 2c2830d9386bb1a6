"""A line of explanation for a key: the comment beside it in a config file, or its entry in the class's docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.source.definitions import Definition

_ENTRY = re.compile(r"^([\w*]+(?:, *[\w*]+)*)(?: *\([^)]*\))?: *(.*)$")
_COMMAND = re.compile(r"^(rlhf-|mlflow ui|python )")


def config_folders(config_dir: str | None) -> list[Path]:
    """Return the folders that are searched for configs, in Hydra's order."""
    return [conf_dir(), *([Path(config_dir)] if config_dir else [])]


def option_file(group: str, option: str, config_dir: str | None = None) -> Path | None:
    """Return the file of an option of a group, or None if there is none."""
    files = (folder / group / f"{option}.yaml" for folder in config_folders(config_dir))
    return next((file for file in files if file.is_file()), None)


def option_files(group: str, option: str, config_dir: str | None = None) -> list[Path]:
    """Return the file of an option, after those of the same group that it builds on."""
    file = option_file(group, option, config_dir)
    if file is None:
        return []
    chosen = content(file).get("defaults") or []
    others = [each for each in chosen if isinstance(each, str) and each not in ("_self_", option)]
    return [*(found for each in others for found in option_files(group, each, config_dir)), file]


def content(file: Path) -> dict[str, Any]:
    """Return the mapping in a config file; empty for anything else, which Hydra reports itself."""
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def package_of(file: Path, group: str) -> str:
    """Return the dotted key under which Hydra puts the content of an option's file."""
    found = re.search(r"^# *@package +(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    package = found[1] if found else group.replace("/", ".")
    return "" if package == "_global_" else package


def header(file: Path) -> str:
    """Return what the comment at the top of a config file says, without its example commands."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").rstrip()
        if text and not text.startswith("@package") and not _COMMAND.match(text):
            lines.append(text)
    return " ".join(lines)


def comments(files: Sequence[tuple[Path, str]]) -> dict[str, str]:
    """Return dotted key -> comment at the end of its line, for files with their packages; later files win."""
    found: dict[str, str] = {}
    for file, package in files:
        for key, text in _comments(file, file.stat().st_mtime_ns).items():
            found[f"{package}.{key}".lstrip(".")] = text
    return found


@lru_cache(maxsize=256)
def _comments(file: Path, _mtime: int) -> dict[str, str]:
    text = file.read_text(encoding="utf-8")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return {}
    return dict(_of_node(root, text.splitlines(), "")) if isinstance(root, yaml.MappingNode) else {}


def _of_node(node: yaml.MappingNode, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        block = isinstance(value, yaml.CollectionNode) and not value.flow_style
        mark = key.end_mark if block else value.end_mark
        rest = lines[mark.line][mark.column :] if mark.line < len(lines) else ""
        if found := re.match(r"^\s*:?\s*#+\s*(.+)$", rest):
            yield name, found[1].strip()
        if isinstance(value, yaml.MappingNode):
            yield from _of_node(value, lines, f"{name}.")


def argument_text(where: Definition, name: str) -> str:
    """Return what the docstring of a class or its constructor says about an argument, up to its first full stop."""
    for docstring in _docstrings(where):
        if text := _entries(docstring).get(name):
            return text
    return ""


def summary(where: Definition) -> str:
    """Return the first sentence of a docstring."""
    docstring = next(iter(_docstrings(where)), "")
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return _first_sentence(paragraph)


def _docstrings(where: Definition) -> list[str]:
    node = where.node
    if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return []
    inner = [each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"]
    return [text for each in (node, *inner) if (text := ast.get_docstring(each))]


@lru_cache(maxsize=256)
def _entries(docstring: str) -> dict[str, str]:
    """Return argument -> text for the section `Args:` of a docstring in Google's form."""
    _, _, section = docstring.partition("Args:\n")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    indent: int | None = None
    for line in section.splitlines():
        depth = len(line) - len(line.lstrip())
        if line.strip() and indent is None:
            indent = depth
        if line.strip() and depth < (indent or 0):
            break
        entry = _ENTRY.match(line.strip()) if line.strip() and depth == indent else None
        if entry:
            names = [name.strip(" *") for name in entry[1].split(",")]
            found |= {name: [entry[2]] for name in names}
        elif line.strip():
            for name in names:
                found[name].append(line.strip())
        else:
            names = []  # a second paragraph is more than a line of explanation
    return {name: _first_sentence(" ".join(lines).strip()) for name, lines in found.items()}


def _first_sentence(text: str) -> str:
    text = text.replace("``", "`")
    found = re.match(r"(.+?[^.\s]{2,})\.(?=\s+[A-Z`]|$)", text)
    return (found[1] if found else text).rstrip(".")
