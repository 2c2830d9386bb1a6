"""Faults as data: a name, and a function that inflicts the fault on a run and reports how the run took it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    """How a run took a fault.

    Args:
        lost: finished steps, checkpoints or metric points that were acknowledged and are gone.
        equal: whether the end result is bitwise that of an undisturbed run; None if there is no such result.
        seconds: how much longer it took.
        lines: lines on standard error beyond those of an undisturbed run.
        good: whether everything is as it must be.
        note: for the table: what was said, or what is wrong.
    """

    lost: int
    equal: bool | None
    seconds: float
    lines: int
    good: bool
    note: str


@dataclass(frozen=True)
class Fault:
    """A fault.

    Args:
        name: name of the fault, which begins with its kind, such as `tracking: `.
        slow: whether it is tried only when all faults are run.
        run: tries it, given its own folder; the parent folder is shared by all faults of one run of the script.
    """

    name: str
    slow: bool
    run: Callable[[Path], Outcome]


def all_faults() -> list[Fault]:
    """Return the list `FAULTS` of every module next to this one."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"fault_catalogue.{name}") for name in names]
    return [fault for module in modules for fault in getattr(module, "FAULTS", [])]
