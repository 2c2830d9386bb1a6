"""JSON-lines files that survive a kill and a resume."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Rewrites the file with the rows `keep` wants; a line that is no JSON object (cut by a kill) is dropped.

    The new file is written beside the old one and renamed over it, so a kill leaves one of the two whole.
    """
    if not path.exists():
        return
    rows = [(line, _parse(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    kept = [line for line, row in rows if row is not None and keep(row)]
    if len(kept) == len(rows):
        return
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
