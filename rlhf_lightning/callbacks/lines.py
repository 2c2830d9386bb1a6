"""JSON-lines files that survive a kill and a resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.durable import append_durably, has_other_names, write_text_durably
from rlhf_lightning.errors import UserError

_TIMES = ("time/", "perf/", "tokens_per_second")  # differ when steps are done again


class Lines:
    """A JSON-lines file that a run appends to, with a running hash by which a resumed run recognises its own lines.

    The hash leaves out times and speeds: everything else is the same in a run resumed from an earlier checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0
        self._hash = hashlib.sha256()

    def append(self, *lines: str) -> None:
        """Append lines, given without their line feeds."""
        append_durably(self.path, "".join(f"{line}\n" for line in lines))
        self._add(line.encode() for line in lines)

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Keep the wanted lines (see `keep_lines`), and count what is left."""
        keep_lines(self.path, wanted)
        self.count, self._hash = 0, hashlib.sha256()
        self._add(self._there())
        return self.count

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores: the number of lines and their hash."""
        return {"lines": self.count, "sha256": self._hash.hexdigest()}

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that the file, if it exists, begins with the lines of a checkpoint's run.

        Raises:
            UserError: it does not.
        """
        if "sha256" not in state or not self.path.exists():
            return
        found = Lines(self.path)
        found._add(self._there()[: state["lines"]])
        if found.state()["sha256"] != state["sha256"]:
            raise UserError(
                f"{self.path}: its first {state['lines']} lines are not those that were there when the checkpoint was "
                "saved; restore it, or move it away (a new one then begins with what is trained from now on)"
            )

    def _there(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []

    def _add(self, lines: Iterable[bytes]) -> None:
        for line in lines:
            row = _parse(line.decode("utf-8", errors="surrogateescape"))
            kept = {name: value for name, value in (row or {}).items() if not any(part in name for part in _TIMES)}
            self._hash.update(line if row is None else json.dumps(kept, sort_keys=True).encode())
            self.count += 1


def keep_lines(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Rewrite the file with the rows that `keep` accepts, and return their number.

    Lines that are not JSON objects are dropped: they were cut off by a kill. The new file is written next to the old
    one and renamed over it, so a kill leaves one of the two intact.
    """
    if not path.exists():
        return 0
    text = path.read_bytes().decode("utf-8", errors="surrogateescape")
    rows = [(line, _parse(line)) for line in text.split("\n")]  # U+2028 and U+0085 may occur inside a line
    kept = [line + "\n" for line, row in rows if row is not None and keep(row)]
    if "".join(kept) != text or has_other_names(path):
        write_text_durably(path, "".join(kept))
    return len(kept)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        line.encode()  # raises on surrogates: the bytes were not UTF-8
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
