"""Where the config files are, and what is looked at in a folder of the user's own before Hydra reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from rlhf_lightning.errors import UserError

MOST_NODES = 100_000  # of one file, aliases written out; a config has some hundreds


def conf_dir() -> Path:
    """The project's configs: inside the package when installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def shipped(command: str) -> dict[str, Any]:
    """The config of a command as it stands in `conf/`, without what Hydra reads of it."""
    own = conf_dir() / command / f"{command}.yaml"
    file = own if own.is_file() else conf_dir() / f"{command}.yaml"
    content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {name: value for name, value in content.items() if name not in ("defaults", "hydra")}


def check_aliases(folder: Path) -> None:
    """Raise UserError for a file whose aliases, written out, would take minutes and the machine's memory.

    A file that is broken otherwise is left to Hydra, which reads it only if it is chosen.
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
    """The number of values under a node, each alias counted as what it stands for."""
    if id(node) not in known:
        known[id(node)] = 1  # an alias of what it lies in
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    return known[id(node)]
