"""The principles that answers are judged by, from a YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, blaming

SHIPPED = Path(__file__).with_name("constitution.yaml")


def read_constitution(path: str | Path = SHIPPED, key: str = "judge.constitution") -> tuple[str, ...]:
    """Return the principles of a YAML file: a list of texts, or a mapping with `principles` alone.

    Args:
        path: the file; default: the constitution that comes with the package.
        key: where it was named, for messages.

    Raises:
        UserError: it cannot be read, contains no principles, or something besides them.
    """
    import yaml  # type: ignore[import-untyped]

    with blaming(f"{key}: {path} cannot be read", "give a YAML file with a list of principles"):
        text = Path(path).read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content: Any = yaml.safe_load(text)
    if isinstance(root, yaml.MappingNode):
        names = [str(name.value) for name, _ in root.value]
        if others := [name for name in names if name != "principles"]:
            raise UserError(f"{key}: {path}: {others[0]} is not read; the file may only have `principles:`")
        if len(names) > 1:
            raise UserError(f"{key}: {path} has `principles:` twice; put them all into one list")
    listed = content.get("principles") if isinstance(content, dict) else content
    if not isinstance(listed, list) or not listed or not all(isinstance(each, str) and each.strip() for each in listed):
        raise UserError(f"{key}: {path} must hold a list of texts, or `principles:` with one")
    for number, each in enumerate(listed, start=1):
        with blaming(f"{key}: {path}: principle {number} is not valid text"):
            each.encode()
    return tuple(each.strip() for each in listed)
