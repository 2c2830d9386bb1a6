"""A judge's answers, cached by a hash of the question: a second run asks only what is missing."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError, reason, writing

_AT_ONCE = 500
_COLUMNS = ["asked", "answer"]


class AnswerCache:
    """Answers in an SQLite file, on disk as soon as they are stored. Threads and processes may share it.

    Args:
        path: the file; None: nothing is stored.
        key: where the user named it.

    Raises:
        UserError: the file cannot be used, or is the database of another program.
    """

    def __init__(self, path: str | Path | None, key: str = "judge.cache") -> None:
        self._path, self._key = None if path is None else Path(path), key
        if self._path is not None:
            check_cache(self._path, key)
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS answers (asked TEXT PRIMARY KEY, answer TEXT NOT NULL)")

    def get(self, asked: Sequence[str], is_answer: Callable[[Any], bool] = lambda answer: True) -> dict[str, Any]:
        """Return the known answers.

        Args:
            asked: hashes of the questions.
            is_answer: whether a stored value can be an answer; one that cannot is missing, as after damage.
        """
        if self._path is None or not asked:
            return {}
        found: dict[str, Any] = {}
        with self._open() as connection:
            for start in range(0, len(asked), _AT_ONCE):
                part = list(asked[start : start + _AT_ONCE])
                marks = ",".join("?" * len(part))
                rows = connection.execute(f"SELECT asked, answer FROM answers WHERE asked IN ({marks})", part)
                for entry, answer in rows:
                    with contextlib.suppress(ValueError, TypeError, RecursionError):
                        found[entry] = json.loads(answer)
        return {entry: answer for entry, answer in found.items() if is_answer(answer)}

    def put(self, answers: dict[str, Any]) -> None:
        """Store answers."""
        if self._path is not None and answers:
            rows = [(entry, json.dumps(answer)) for entry, answer in answers.items()]
            with self._open() as connection:
                connection.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?)", rows)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        assert self._path is not None
        with (
            _readable(self._path, self._key),
            writing(self._path),
            contextlib.closing(sqlite3.connect(self._path, timeout=30)) as opened,
            opened,
        ):
            yield opened


def check_cache(path: Path, key: str = "judge.cache") -> None:
    """Raise UserError if something exists at a path that is not a cache: nothing is written into a foreign database."""
    if not os.path.exists(path):  # unlike Path's, it accepts any text
        return
    if not os.path.isfile(path):
        raise UserError(f"{key}: {path} is {'a folder' if path.is_dir() else 'not a file'}; name a file of its own")
    with _readable(path, key):
        where = f"{path.absolute().as_uri()}?mode=rw"  # ro cannot take back what a killed process had begun to write
        with contextlib.closing(sqlite3.connect(where, timeout=30, uri=True)) as opened:
            listed = opened.execute("SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
            names = [name for (name,) in listed]
            columns = [row[1] for row in opened.execute("PRAGMA table_info(answers)")]
    if names and (names, columns) != (["answers"], _COLUMNS):
        holds = ", ".join(sorted(names)[:3])
        raise UserError(f"{key}: {path} is a database of something else (it holds {holds}); name a file of its own")


@contextlib.contextmanager
def _readable(path: Path, key: str) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise UserError(f"{key}: {path}: {reason(error)}; choose another file") from error
