"""A line of explanation for a key: the comment beside it in a config file, or its entry in the class's docstring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.reference import yaml_comments
from rlhf_lightning.source.definitions import Definition
from rlhf_lightning.source.docstrings import docstring, documented_arguments

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
    try:
        return yaml_comments(file.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return {}


def argument_text(where: Definition, name: str) -> str:
    """Return what the docstring of a class or its constructor says about an argument, up to its first full stop."""
    return _first_sentence(documented_arguments(where).get(name, ""))


def summary(where: Definition) -> str:
    """Return the first sentence of a docstring."""
    paragraph = " ".join(docstring(where).split("\n\n")[0].split())
    return _first_sentence(paragraph)


def _first_sentence(text: str) -> str:
    text = text.replace("``", "`")
    found = re.match(r"(.+?[^.\s]{2,})\.(?=\s+[A-Z`]|$)", text)
    return (found[1] if found else text).rstrip(".")
