"""The values in the files of `conf/`: using an experiment does not count as setting them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.config.config_files import conf_dir


@functools.cache
def shipped_values(algorithm: str) -> dict[str, list[Any]]:
    """Return dotted key -> the values that the files of `conf/` give it; for callbacks, `callbacks.*.<key>`.

    Args:
        algorithm: the class of the run's algorithm. Settings that files give for another algorithm are left out.
    """
    files, contents = _files()
    targets = {file.stem: content["_target_"] for file, content in contents.items() if file.parent.name == "algorithm"}
    values: dict[str, list[Any]] = {}
    for file, content in contents.items():
        package = ".".join(file.parent.relative_to(conf_dir()).parts)
        other = targets.get(_algorithm(file, content), algorithm) != algorithm and algorithm in targets.values()
        for key, value in _leaves(content, "" if "@package" in files[file] else package):
            if not (other and key.startswith("algorithm.")):
                values.setdefault(_general(key), []).append(value)
    return values


@functools.cache
def _files() -> tuple[dict[Path, str], dict[Path, Any]]:
    """Return the text and the content of every file."""
    files = {file: file.read_text(encoding="utf-8") for file in sorted(conf_dir().rglob("*.yaml"))}
    return files, {file: yaml.load(text, _Loader) for file, text in files.items()}


def _algorithm(file: Path, content: Any) -> str:
    """Return the option of the group `algorithm` that a file defines or chooses."""
    chosen = content.get("defaults", []) if isinstance(content, Mapping) else []
    named = [
        each["override /algorithm"] for each in chosen if isinstance(each, Mapping) and "override /algorithm" in each
    ]
    return file.stem if file.parent.name == "algorithm" else str((named or [""])[0])


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads `1e-5` as a number, like OmegaConf, whose own loader takes half a second for all files."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), [*"-+0123456789"]
)


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        for name, inner in content.items():
            yield from _leaves(inner, f"{prefix}.{name}".lstrip("."))
    else:
        yield prefix, content


def _general(key: str) -> str:
    """Return the key without the prefix of a stage's overrides or the name of a callback."""
    parts = key.split(".")
    if parts[0] == "stages" and "overrides" in parts:
        parts = parts[parts.index("overrides") + 1 :]
    if parts[0] == "callbacks" and len(parts) > 2:
        parts[1] = "*"
    return ".".join(parts)
