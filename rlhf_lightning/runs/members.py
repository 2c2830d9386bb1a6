"""Members: a reward stage that trains several models from different seeds, which later stages take as an ensemble."""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
from typing import Any

_ADDED_UP = ("wall_seconds", "cpu_seconds")


def member_names(name: str, members: int | None) -> list[str]:
    """Return the names of the stages that train the members of a stage, or its own name if there is one member.

    >>> member_names("reward_1", 3)
    ['reward_1_a', 'reward_1_b', 'reward_1_c']
    >>> member_names("reward", None)
    ['reward']
    """
    return [f"{name}_{letter}" for letter in string.ascii_lowercase[:members]] if members and members > 1 else [name]


def with_ensemble(summary: Mapping[str, Any], name: str, members: Iterable[str]) -> dict[str, Any]:
    """Return a pipeline's summary with figures of an ensemble: the means of its members, and the sums of their times.

    >>> with_ensemble({"r_a.accuracy": 0.5, "r_b.accuracy": 0.7, "r_a.cpu_seconds": 1, "r_b.cpu_seconds": 2}, "r",
    ...               ["r_a", "r_b"])["r.accuracy"]
    0.6
    """
    found: dict[str, list[float]] = {}
    for member in members:
        for key, value in summary.items():
            stage, _, metric = key.partition(".")
            if stage == member and isinstance(value, int | float) and not isinstance(value, bool):
                found.setdefault(f"{name}.{metric}", []).append(value)
    figures = {key: sum(each) / (1 if key.endswith(_ADDED_UP) else len(each)) for key, each in found.items()}
    return {**summary, **figures}
