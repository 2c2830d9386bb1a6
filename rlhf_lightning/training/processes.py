"""Values that differ between the processes of a run."""

from __future__ import annotations

from typing import TypeVar

from torch import distributed

T = TypeVar("T")


def of_every_process(value: T) -> list[T]:
    """Return the values of all processes, in rank order. Call it on every process."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[T] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def of_this_process(values: list[T]) -> T | None:
    """Return this process's part of an `of_every_process` result; None for another number of processes."""
    ready = distributed.is_available() and distributed.is_initialized()
    world_size, rank = (distributed.get_world_size(), distributed.get_rank()) if ready else (1, 0)
    return values[rank] if len(values) == world_size else None
