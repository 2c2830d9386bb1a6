"""The check of every reward's result: one number per response, or one per token of each response."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, TypeAlias, TypeGuard

from rlhf_lightning.errors import UserError, blaming

LARGEST = 3.4028234663852886e38  # of float32, which training uses
Scores: TypeAlias = "list[float] | list[list[float]]"
Partial: TypeAlias = "list[float | list[float] | None]"
"""Scores with None for responses that a reward does not apply to."""


class BadScoreError(UserError):
    """A score that training cannot use.

    Attributes:
        index: its position among the responses.
    """

    def __init__(self, message: str, index: int) -> None:
        super().__init__(message)
        self.index = index


def check_scores(scores: Sequence[Any], n: int, name: str, key: str | None = None) -> list[float]:
    """Return one float per response, if there are `n` and all are finite in float32; numbers per token are added up.

    Arguments and errors as for `check_result`.
    """
    return totals(check_result(scores, n, name, key))


def check_result(
    scores: Sequence[Any], n: int, name: str, key: str | None = None, lengths: Sequence[int] | None = None
) -> Scores:
    """Return a reward's result as floats: one per response, or a list per response with one for each of its tokens.

    Args:
        scores: a reward's result.
        n: the required number of responses.
        name: the reward's name.
        key: where it was named, such as `reward.function`; None: `reward`.
        lengths: tokens of each response, the EOS included; None: not known, so lists may have any length.

    Raises:
        UserError: wrong length, a value that is not a number, NaN or infinity, or numbers for some responses and lists
            for others. Nothing is ever broadcast.
    """
    who = f"reward {name}" if key is None else f"{key}: {name}"
    return _checked(_listed(scores, n, who), who, lengths)


def check_partial(
    scores: Sequence[Any], n: int, name: str, key: str | None = None, lengths: Sequence[int] | None = None
) -> Partial:
    """Return the same as `check_result`, with None where the result has None."""
    who = f"reward {name}" if key is None else f"{key}: {name}"
    listed = _listed(scores, n, who)
    places = [i for i, score in enumerate(listed) if score is not None]
    lengths = None if lengths is None else [lengths[i] for i in places]
    known: Iterator[float | list[float]] = iter(_checked([listed[i] for i in places], who, lengths, places))
    return [None if score is None else next(known) for score in listed]


def filled(scores: Partial, lengths: Sequence[int] | None = None) -> Scores:
    """Return checked scores with 0 instead of None; a list of zeros, of the response's length, among lists."""
    lists = {i: score for i, score in enumerate(scores) if isinstance(score, list)}
    if not lists:
        return [score if isinstance(score, float) else 0.0 for score in scores]
    tokens = lengths or [1] * len(scores)
    return [lists.get(i, [0.0] * tokens[i]) for i in range(len(scores))]


def _listed(scores: Sequence[Any], n: int, who: str) -> list[Any]:
    found = as_list(scores, f"{who}: returned {type(scores).__name__}, expected a list of {n} numbers")
    if len(found) != n:
        raise UserError(f"{who}: returned {len(found)} scores for {n} responses; return one for each")
    return found


def as_list(values: Any, expected: str) -> list[Any]:
    """Return the items of something with an order and a length. Raises UserError, `expected`, for anything else."""
    if not hasattr(values, "__len__") or isinstance(values, Mapping | Set | str | bytes):
        raise UserError(expected)
    with blaming(expected):  # an array without a shape has no length
        length, found = len(values), list(values)
    if length != len(found):
        raise UserError(f"{expected}: it says that it has {length}, and gives {len(found)}")
    return found


def _checked(scores: list[Any], who: str, lengths: Sequence[int] | None, places: Sequence[int] | None = None) -> Scores:
    """Return scores as floats. `places` are their numbers among the responses; None: their own."""
    at = range(len(scores)) if places is None else places
    rows = [_row(score) for score in scores]
    listed = [row is not None for row in rows]
    if not any(listed):
        return [finite_number(score, f"{who}: score {at[i]}", at[i]) for i, score in enumerate(scores)]
    if not all(listed):
        i, j = listed.index(True), listed.index(False)
        raise BadScoreError(
            f"{who}: returned a list for response {at[i]} and {_short(scores[j])} for response {at[j]}; return one "
            "number for every response, or for every response a list with one number per token",
            at[j],
        )
    return [
        _token_scores(row, who, at[i], None if lengths is None else lengths[i])
        for i, row in enumerate(rows)
        if row is not None
    ]


def per_token(scores: Scores) -> TypeGuard[list[list[float]]]:
    """Return whether a checked result has one number per token."""
    return bool(scores) and isinstance(scores[0], list)


def totals(scores: Scores) -> list[float]:
    """Return one number per response of a checked result: the sum over its tokens."""
    return [math.fsum(row) for row in scores] if per_token(scores) else list(scores)  # type: ignore[arg-type]


def at_last_token(scores: Scores, like: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return one number per token: those of `scores`, or 0 up to the last token, which has the response's number.

    Args:
        scores: a checked result.
        like: lists with one item per token.
    """
    if per_token(scores):
        return scores
    return [[*[0.0] * (len(row) - 1), float(score)] for row, score in zip(like, scores, strict=True)]  # type: ignore[arg-type]


def _token_scores(row: list[Any], who: str, i: int, length: int | None) -> list[float]:
    if length is not None and len(row) != length:
        raise BadScoreError(
            f"{who}: returned {len(row)} numbers for response {i}, which has {length} tokens, its EOS included; return "
            "one for each",
            i,
        )
    if not row:
        raise BadScoreError(f"{who}: returned an empty list for response {i}; return one number per token", i)
    return [finite_number(score, f"{who}: score {j} of response {i}", i) for j, score in enumerate(row)]


def _row(score: Any) -> list[Any] | None:
    """Return the items of a list, a tuple or an array; None for anything else, such as an array without a shape."""
    if isinstance(score, list | tuple):
        return list(score)
    if not hasattr(score, "__len__") or not hasattr(score, "shape") or not len(score.shape):
        return None
    return list(score)


def finite_number(score: Any, what: str, index: int = 0) -> float:
    """Return a score as a float. Raises BadScoreError if it is not a number, or not finite in float32."""
    if isinstance(score, str | bytes):  # float() would read "1" as 1
        raise BadScoreError(f"{what} is {_short(score)}, expected a number", index)
    try:
        value = float(score)
    except (TypeError, ValueError, OverflowError):
        raise BadScoreError(f"{what} is {_short(score)}, expected a number", index) from None
    if not abs(value) <= LARGEST:
        raise BadScoreError(f"{what} is {value}, expected a finite number of float32 (up to 3.4e38)", index)
    return value


def _short(value: Any) -> str:
    """Return a short form of a value; some have no text, such as integers with thousands of digits."""
    try:
        return repr(value)[:80]
    except Exception:  # from a user's own class
        return f"a {type(value).__name__} that cannot be shown"
