"""The URL of a feedback store, checked before anything is opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from rlhf_lightning.errors import UserError, reason
from rlhf_lightning.secret_text import shown

_SUCH = "give one such as sqlite:///outputs/feedback.db"
_SQLITE = ("sqlite", "sqlite+pysqlite")  # Python's own driver, with and without its name


def checked_url(url: str) -> URL:
    """Return the parts of a store's URL.

    Raises:
        UserError: it is not a URL, or one of SQLite that names no plain file, or has options: they could keep the
            store in memory only.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # ValueError: a port that is not a number
        raise UserError(f"feedback.store: {shown(url)!r} is not the URL of a database; {_SUCH}") from error
    if parsed.get_backend_name() != "sqlite":
        return parsed
    name = parsed.render_as_string(hide_password=True)
    if parsed.drivername not in _SQLITE:
        raise UserError(f"feedback.store: {name}: SQLite is read with Python's own driver; {_SUCH}")
    if (parsed.database or ":memory:") == ":memory:" or parsed.host or parsed.username:
        raise UserError(f"feedback.store: {name!r} names no file; {_SUCH}")
    if parsed.query or str(parsed.database).startswith("file:"):
        found = ", ".join(parsed.query) or "file:"
        raise UserError(f"feedback.store: {name}: a URL of SQLite has no options here, found {found}; {_SUCH}")
    _check_plain(Path(str(parsed.database)))
    return parsed


def store_file(url: str) -> Path | None:
    """Return the file of an SQLite store, which need not exist; None for another database.

    Raises:
        UserError: see `checked_url`.
    """
    parsed = checked_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def _check_plain(file: Path) -> None:
    """Raise UserError for what exists and is not a plain file, and for a path that nothing can have."""
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"feedback.store: {reason(error)}; choose another folder or file") from error
    if not stat.S_ISREG(mode):
        kind = "is a folder" if stat.S_ISDIR(mode) else "is not a plain file"
        raise UserError(f"feedback.store: {file} {kind}; {_SUCH}")
