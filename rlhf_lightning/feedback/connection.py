"""The connection to a store's database, and what its errors mean to the user."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, NoSuchModuleError

from rlhf_lightning.errors import UserError, as_disk_error, reason, writing
from rlhf_lightning.store_url import checked_url, store_file

_LACKS = re.compile(r"no such (table|column)|(relation|column) .* does not exist")  # SQLite and PostgreSQL


class Database:
    """Transactions on a database, with errors in plain words.

    SQLite is opened in WAL mode, and synced with each durable transaction. A transaction that writes takes the write
    lock immediately, so that two servers on one file wait for each other rather than fail.

    Args:
        url: a SQLAlchemy URL, such as `sqlite:///outputs/feedback.db`.
        patience: seconds to wait for a lock that another process holds.

    Raises:
        UserError: the URL is invalid, its driver is missing, or it names no file.
    """

    def __init__(self, url: str, patience: float = 10.0) -> None:
        self.patience = patience
        self._url = checked_url(url)
        self.name = self._url.render_as_string(hide_password=True)
        self.file = store_file(url)
        if self.file is not None:
            self._make_folder(self.file.parent)
        self.engine = self._engine()
        self._turn = threading.RLock()

    @property
    def is_sqlite(self) -> bool:
        return self._url.get_backend_name() == "sqlite"

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction that sees one state of the store and changes nothing."""
        with self._plainly(), self.engine.connect() as opened:
            one_state = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}  # SQLite's default
            connection = opened.execution_options(**one_state)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def changing(self, durable: bool = True) -> Iterator[Connection]:
        """Open a transaction that is on disk once the block has ended, or not at all.

        One that is not durable survives any end of the process; if the machine fails, it may be lost unless a durable
        transaction came after it.
        """
        with self._in_turn(), self._plainly(), self.engine.connect() as opened:
            connection = opened.execution_options(changes="FULL" if durable else "NORMAL")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Make threads that write to SQLite wait for each other here: SQLite's own waiting polls up to 100 ms apart."""
        if not self.is_sqlite:
            yield
            return
        if not self._turn.acquire(timeout=self.patience):
            raise self._locked()
        try:
            yield
        finally:
            self._turn.release()

    def close(self) -> None:
        self.engine.dispose()

    def _make_folder(self, folder: Path) -> None:
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"feedback.store: {self.name}: {reason(error)}; choose another folder") from error

    def _engine(self) -> Engine:
        options: dict[str, Any] = {"pool_pre_ping": not self.is_sqlite, "pool_size": 40}  # a web server's threads
        if self.is_sqlite:
            options["connect_args"] = {"timeout": self.patience, "check_same_thread": False}
        with _with_driver(self.name):
            engine = create_engine(self._url, **options)
        if self.is_sqlite:
            event.listen(engine, "connect", self._set_up)
            event.listen(engine, "begin", _begin)
        elif self._url.get_backend_name() == "postgresql":
            event.listen(engine, "connect", self._wait_for_locks)
        return engine

    def _set_up(self, opened: Any, record: object) -> None:
        """Set up each new connection. The driver's own transactions are off: `_begin` opens them."""
        opened.isolation_level = None
        self._turn_wal_on(opened)
        opened.execute("PRAGMA foreign_keys=ON")

    def _wait_for_locks(self, opened: Any, record: object) -> None:
        with opened.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {max(1, round(1000 * self.patience))}")
        opened.commit()

    def _turn_wal_on(self, opened: Any) -> None:
        """Turn WAL mode on, waiting here for a lock because SQLite does not."""
        end = time.monotonic() + self.patience
        while True:
            try:
                if opened.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                    opened.execute("PRAGMA journal_mode=WAL").fetchone()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
                time.sleep(0.02)
            else:
                return

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            raise self._explained(error) from error
        except sqlite3.Error as error:  # while opening a connection
            raise self._explained(error) from error

    def _explained(self, error: BaseException) -> UserError:
        found = reason(getattr(error, "orig", None) or error)
        if self.file is not None and (disk := as_disk_error(error, self.file)) is not None:
            return disk
        if "locked" in found or "lock timeout" in found:
            return self._locked()
        if "readonly" in found or "read-only" in found:
            return UserError(f"feedback.store: {self.name} is read-only here; make it and its folder writable")
        if "not a database" in found or "malformed" in found:
            return UserError(f"feedback.store: {self.name} is not a whole SQLite database ({found}); restore a copy")
        if _LACKS.search(found):
            return UserError(f"feedback.store: {self.name} is not a whole feedback store ({found}); restore a copy")
        return UserError(f"feedback.store: {self.name}: {found}; check that it can be reached, and try again")

    def _locked(self) -> UserError:
        return UserError(
            f"feedback.store: {self.name} has been locked by another process for {self.patience:g} s; wait until it is "
            "done, or end it, and try again"
        )


def check_url(url: str) -> None:
    """Raise UserError unless it is the URL of a database whose driver is installed. Nothing is opened."""
    parsed = checked_url(url)
    with _with_driver(parsed.render_as_string(hide_password=True)):
        create_engine(parsed).dispose()


@contextlib.contextmanager
def _with_driver(name: str) -> Iterator[None]:
    try:
        yield
    except (ImportError, NoSuchModuleError) as error:
        raise UserError(
            f"feedback.store: {name} cannot be opened: {reason(error)}"
            f"{'' if 'pip install' in reason(error) else '; install the driver of this database'}"
        ) from error


def is_there(url: str) -> bool:
    """Return whether a store's file exists; other databases are assumed to exist."""
    file = store_file(url)
    return file is None or file.exists()


def _begin(connection: Connection) -> None:
    synced = connection.get_execution_options().get("changes")
    if synced is not None:
        connection.exec_driver_sql(f"PRAGMA synchronous={synced}")
    connection.exec_driver_sql("BEGIN" if synced is None else "BEGIN IMMEDIATE")
