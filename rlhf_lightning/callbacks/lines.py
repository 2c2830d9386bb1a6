"""JSON-lines files that survive a kill and a resume."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import has_other_names, write_text_durably


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrites the file with the rows `keep` wants and returns their number; a line that is no JSON object is dropped.

    Such a line was cut by a kill. The new file is written beside the old one and renamed over it, so a kill leaves one
    of the two whole.
    """
    if not path.exists():
        return 0
    text = path.read_text(encoding="utf-8")
    rows = [(line, _parse(line)) for line in text.split("\n")]  # U+2028 and U+0085 may stand inside a line
    kept = [line + "\n" for line, row in rows if row is not None and keep(row)]
    if "".join(kept) != text or has_other_names(path):
        write_text_durably(path, "".join(kept))
    return len(kept)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
