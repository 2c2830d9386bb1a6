"""Waits of the host for a device: which operations cause them, and a count of them by line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

PACKAGE = "/rlhf_lightning/"
LIBRARIES = "site-packages/"


class Wait(NamedTuple):
    """One kind of wait at one place."""

    kind: str  # read (to the host), send (to the device), size (a shape that depends on values), sync
    operation: str
    line: str  # our innermost line, "rollout/native.py:_draw"; a library's if none of ours is on the stack
    library: str  # the library function that waits; "" if the line itself does


class Waits:
    """Counts waits while it is on."""

    def __init__(self) -> None:
        self.counts: Counter[Wait] = Counter()
        self.notes: Counter[str] = Counter()
        self.operations = 0  # computed by the device

    def add(self, kind: str, operation: str) -> None:
        """Count one more, at the place that causes it."""
        self.counts[Wait(kind, operation, *_place())] += 1

    def note(self, what: str) -> None:
        """Note something that works, but may not be intended."""
        self.notes[f"{what} at {_place()[0]}"] += 1

    @contextmanager
    def counted(self) -> Iterator[Counter[Wait]]:
        """Yield the waits within a block only."""
        outer, self.counts = self.counts, Counter()
        inner = self.counts
        try:
            yield inner
        finally:
            self.counts = outer + inner


def _place() -> tuple[str, str]:
    ours, library = "", ""
    frame = sys._getframe(2)
    while frame is not None and not ours:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if PACKAGE in file and LIBRARIES not in file and "/tests/" not in file:
            ours = f"{file.rpartition(PACKAGE)[2]}:{function}"
        elif not library and LIBRARIES in file and "/torch/" not in file:
            library = f"{file.rpartition(LIBRARIES)[2]}:{function}"
        frame = frame.f_back
    return ours or "-", library
