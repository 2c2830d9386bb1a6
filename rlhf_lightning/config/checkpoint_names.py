"""The names of checkpoints: they stay in their folder, and can be made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rlhf_lightning.errors import UserError

_LONGEST = 200  # bytes of a name; file systems take 255, with what a manifest and an unfinished file add to it
_LIGHTNINGS = ("ModelCheckpoint", "ResumableCheckpoint")  # another class may have its own patterns
_WHOLE = ("epoch", "step")  # Lightning counts them in integers; every metric is a float


def check_checkpoint_names(config: Mapping[str, Any]) -> None:
    """Raise UserError for a callback whose checkpoints would be outside of their folder, or cannot be named."""
    for name, section in (config.get("callbacks") or {}).items():
        if not isinstance(section, Mapping) or not str(section.get("_target_", "")).endswith("Checkpoint"):
            continue
        given = section.get("filename")
        if isinstance(given, str) and given:
            _check(f"callbacks.{name}.filename", given, str(section["_target_"]).endswith(_LIGHTNINGS))


def _check(key: str, given: str, is_pattern: bool) -> None:
    try:
        made = _example(given) if is_pattern else given
    except Exception as error:
        raise UserError(
            f'{key}: found "{given}", from which no name can be made ({error}); must be text with fields such as '
            "{epoch}, {step:05d} or {val/loss:.2f}"
        ) from error
    if any(PurePosixPath(each).is_absolute() or ".." in PurePosixPath(each).parts for each in (given, made)):
        raise UserError(
            f'{key}: found "{given}"; must be a name inside the folder of the checkpoints, without .. and no absolute '
            f"path; another folder is {key.rpartition('.')[0]}.dirpath"
        )
    if "\0" in made or any(len(part.encode()) > _LONGEST for part in PurePosixPath(made).parts):
        raise UserError(f"{key}: not the name of a file; must have at most {_LONGEST} bytes, and no NUL character")


def _example(given: str) -> str:
    """Return the name that Lightning would make of its text in the first epoch: `{name:format}` becomes a number."""
    fields = sorted(re.findall(r"(\{.*?)[:\}]", given), key=len, reverse=True)
    for field in fields:
        given = given.replace(field, f"{{0[{field[1:]}]")
    return given.format({field[1:]: 0 if field[1:] in _WHOLE else 0.5 for field in fields})
