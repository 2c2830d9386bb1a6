"""Where the config files are, and the check of a user's own config folder before Hydra reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.errors import UserError

MOST_NODES = 100_000  # in one file with its aliases expanded; a config has a few hundred


def conf_dir() -> Path:
    """Return the folder of the project's configs: inside an installed package, next to the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def shipped(command: str) -> dict[str, Any]:
    """Return a command's config as it is in `conf/`, without the keys that only Hydra reads."""
    own = conf_dir() / command / f"{command}.yaml"
    file = own if own.is_file() else conf_dir() / f"{command}.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in ("defaults", "hydra")}


def check_aliases(folder: Path) -> None:
    """Raise UserError for a file whose aliases, expanded, would take minutes and fill the machine's memory.

    A file that is otherwise broken is left to Hydra, which reads it only if it is chosen.
    """
    for file in sorted(folder.rglob("*.yaml")):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader) if "*" in text else None
            count = 0 if root is None else _written_out(root, {})
        except (OSError, ValueError, yaml.YAMLError, RecursionError):
            continue
        if count > MOST_NODES:
            raise UserError(
                f"{file}: its aliases stand for more than {MOST_NODES:,} values; write out what is needed without them"
            )


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of values under a node, each alias counted as what it expands to."""
    if id(node) not in known:
        known[id(node)] = 1  # an alias of a node that contains it
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    return known[id(node)]
