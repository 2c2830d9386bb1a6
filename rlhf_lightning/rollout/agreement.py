"""Actions that all processes depend on: they succeed in all processes or fail in all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

from rlhf_lightning.errors import UserError

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Run the action in every process, and wait for all of them.

    Raises:
        UserError: in every process, if one raised it. A process that continued alone would wait for the others forever.
    """
    result, failure = _attempt(action)
    _raise_first(failure, _of_all(_message(failure)))
    return result


def by_first(action: Callable[[], T]) -> T:
    """Run the action in the first process; return its result, or raise its UserError, in every process."""
    result, failure = _attempt(action) if _rank() == 0 else (None, None)
    result, message = _of_all((result, _message(failure)))[0]
    _raise_first(failure, [message])
    return result


def _attempt(action: Callable[[], T]) -> tuple[Any, UserError | None]:
    try:
        return action(), None
    except UserError as error:
        return None, error


def _message(failure: UserError | None) -> str | None:
    return None if failure is None else str(failure)


def _raise_first(failure: UserError | None, messages: list[str | None]) -> None:
    """Raise this process's own failure, or the first of another's."""
    if failure is not None:
        raise failure
    for message in messages:
        if message is not None:
            raise UserError(message)


def _of_all(value: Any) -> list[Any]:
    """Return the values of all processes, in rank order."""
    if not _several():
        return [value]
    values = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _rank() -> int:
    return distributed.get_rank() if _several() else 0
