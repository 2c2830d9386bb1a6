"""Standard output and error as the last gate before a terminal: control characters are inert, secrets hidden.

Warnings, log records, tracebacks and messages of libraries quote names, paths, prompts and addresses. All of it passes
through here, whoever prints it, and so do the records of log files.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rlhf_lightning.disk import disk_error
from rlhf_lightning.outside_text import for_terminal
from rlhf_lightning.secret_text import remember_variables, shown

_DRAW_WITH_ESCAPES = {"tqdm", "rich"}  # progress bars and tables, on a terminal


class GuardedStream:
    """A text stream that spells out control characters and hides secrets.

    A disk that accepts no more (a log file on a full disk) does not stop a run: what cannot be written is dropped, and
    `lost` says why.

    Args:
        stream: where the text goes.
    """

    def __init__(self, stream: Any) -> None:
        self.guarded = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write the text, made harmless; on a terminal, progress bars and tables keep their escape sequences."""
        draws = _draws(sys._getframe(1).f_globals.get("__name__")) and self.guarded.isatty()
        with self._noting_loss():
            self.guarded.write(shown(text) if draws else for_terminal(shown(text)))
        return len(text)

    def flush(self) -> None:
        """Flush what was written to its file."""
        with self._noting_loss():
            self.guarded.flush()

    def settle(self) -> None:
        """Flush for the last time, forgetting any lost text, or Python would complain about it on exit."""
        with suppress(ValueError):  # the stream is closed
            self.flush()
        if self.lost is not None:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.guarded.fileno())

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if disk_error(error) is None:
                raise
            self.lost = self.lost or error

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.guarded, name)


def _draws(module: Any) -> bool:
    return str(module).partition(".")[0] in _DRAW_WITH_ESCAPES


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Guard what is printed and logged inside, by this process and through handlers that libraries created earlier."""
    remember_variables()
    former = sys.stdout, sys.stderr, logging.getLogRecordFactory()
    if any(isinstance(stream, GuardedStream) for stream in former[:2]):
        yield  # already guarded: a job of a sweep
        return
    sys.stdout, sys.stderr = GuardedStream(sys.stdout), GuardedStream(sys.stderr)
    logging.setLogRecordFactory(_harmless(former[2]))
    moved = [(handler, handler.stream) for handler in _handlers() if handler.stream in former[:2]]
    for handler, stream in moved:
        handler.stream = sys.stdout if stream is former[0] else sys.stderr
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, GuardedStream):
                stream.settle()
        sys.stdout, sys.stderr = former[:2]
        logging.setLogRecordFactory(former[2])
        for handler, stream in moved:
            handler.stream = stream


def _handlers() -> list[Any]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    of_each = [handler for logger in loggers for handler in getattr(logger, "handlers", [])]
    return [handler for handler in of_each if hasattr(handler, "stream")]


def _harmless(make: Any) -> Any:
    """Return a log-record factory whose message is final and harmless: handlers may write it to files."""

    def record(*arguments: Any, **more: Any) -> logging.LogRecord:
        made: logging.LogRecord = make(*arguments, **more)
        try:
            message = made.getMessage()
        except Exception:  # arguments that do not match the format: logging reports that later
            return made
        made.msg, made.args = for_terminal(shown(message)), None
        return made

    return record
