"""The rows of the catalogue: a kind of bug, its invariant, its mutants."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One bug: in `rlhf_lightning/<file>`, `old` (which occurs once) becomes `new`, and one of `tests` must fail.

    Tests are pytest node ids below `tests/`.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A kind of silent bug, what holds where it is absent, and its mutants."""

    bug: str
    invariant: str
    mutants: tuple[Mutant, ...]
