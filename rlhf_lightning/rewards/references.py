"""What verifiers compare with: the references and tests of a row, checked before they decide a score."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.rewards.scores import BadScoreError

NOT_COLUMNS = {"prompts", "completion_ids", "trainer_state", "log_metric", "log_extra"}


def checked_column(columns: dict[str, Any], name: str, n: int, check: Callable[[Any], None]) -> Sequence[Any]:
    """Return a column whose values a check accepts, or null.

    Args:
        columns: what a reward is given besides prompts and completions.
        name: of the column.
        n: number of completions; without any there need not be the column.
        check: raises ValueError for a value that it refuses.

    Raises:
        UserError: there is no such column.
        BadScoreError: the check refuses a value; names the row.
    """
    if not n:
        return []
    if name not in columns:
        known = ", ".join(sorted(columns.keys() - NOT_COLUMNS)) or "none"
        raise UserError(f"arguments.column: the rows have no column {name!r}; their columns: {known}")
    found: Sequence[Any] = columns[name]
    for index, value in enumerate(found):
        try:
            if value is not None:
                check(value)
        except ValueError as error:
            raise BadScoreError(f"arguments.column: {name!r} of response {index}: {error}", index) from error
    return found


def check_reference(value: Any) -> None:
    """Raise ValueError unless a value is a reference, or a list of them, of which one must match."""
    for each in value if isinstance(value, list | tuple) else [value]:
        if each is not None:
            check_one_reference(each)
            if isinstance(each, str) and not each.strip():
                raise ValueError("found an empty text; must be the answer, or null where there is none")


def check_one_reference(value: Any) -> None:
    """Raise ValueError unless a value is a text or a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(value, str) and not number:
        raise ValueError(f"found {_short(value)}; must be a text or a number")


def spellings(reference: Any) -> list[str]:
    """Return the texts that a reference allows; a table stores whole numbers as 12.0, so that is 12 too.

    >>> spellings([12.0, "a", None])
    ['12.0', '12', 'a']
    """
    allowed = reference if isinstance(reference, list | tuple) else [reference]
    found = []
    for each in allowed:
        if each is not None:
            found.append(str(each))
        if isinstance(each, float) and each.is_integer():
            found.append(str(int(each)))
    return found


def check_tests(value: Any) -> None:
    """Raise ValueError unless a value is Python code, or a list of parts of it, with a statement that can fail."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(f"found {_short(value)}; must be Python code as text, such as 'assert add(1, 2) == 3'")
    if fault := _fault(code_of_tests(value)):
        raise ValueError(f"found {_short(value)}; {fault}, such as 'assert add(1, 2) == 3'")


def code_of_tests(value: Any) -> str:
    """Return tests as one program."""
    return "\n".join(value) if isinstance(value, list | tuple) else value


@lru_cache(maxsize=4096)
def _fault(code: str) -> str | None:
    """Return what is wrong with tests."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
            compile(code, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"it is not Python code ({str(error).partition(' (')[0]}); must be code"
    if all(_is_data(statement) for statement in tree.body) or _is_json(code):
        return "it tests nothing; must be code that fails for a wrong answer"
    return None


def _is_data(statement: ast.stmt) -> bool:
    """Return whether a statement is a mere value, such as a number, a text or a list of inputs and outputs."""
    if not isinstance(statement, ast.Expr):
        return False
    try:
        ast.literal_eval(statement.value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        return False
    return True


def _is_json(code: str) -> bool:
    try:
        json.loads(code)
    except (ValueError, RecursionError):
        return False
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
