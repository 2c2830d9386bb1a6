"""A judge's answers, cached by a hash of the question: a second run asks only what is missing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, reason, writing

_AT_ONCE = 500


class AnswerCache:
    """Answers in an SQLite file, on disk as soon as they are stored. Threads and processes may share it.

    Args:
        path: the file; None: nothing is stored.

    Raises:
        UserError: the file cannot be used.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        if self._path is not None:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS answers (asked TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, asked: Sequence[str]) -> dict[str, Any]:
        """Return the known answers."""
        if self._path is None or not asked:
            return {}
        found: dict[str, Any] = {}
        with self._open() as connection:
            for start in range(0, len(asked), _AT_ONCE):
                part = list(asked[start : start + _AT_ONCE])
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT asked, answer FROM answers WHERE asked IN ({marks})", part)
                found |= {entry: json.loads(answer) for entry, answer in rows}
        return found

    def put(self, answers: dict[str, Any]) -> None:
        """Store answers."""
        if self._path is not None and answers:
            rows = [(entry, json.dumps(answer)) for entry, answer in answers.items()]
            with self._open() as connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        assert self._path is not None
        try:
            with writing(self._path), contextlib.closing(sqlite3.connect(self._path, timeout=30)) as opened, opened:
                yield opened
        except sqlite3.Error as error:
            raise UserError(f"judge.cache: {self._path}: {reason(error)}; choose another file") from error
