"""Checked values of a row: texts, labels, numbers, ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rlhf_lightning.data.messages import Text, checked_text
from rlhf_lightning.data.rows import allowed_formats, row_format, shown_columns
from rlhf_lightning.errors import UserError


def checked_row(row: dict[str, Any], purpose: str, allowed: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the row's format, and the row with its texts checked."""
    kind = row_format(row)
    if kind not in allowed:
        raise UserError(f"columns {shown_columns(row)}: not a format for {purpose}; must be {allowed_formats(allowed)}")
    return kind, row | checked_texts(row)


def checked_texts(row: dict[str, Any]) -> dict[str, Text]:
    names = ("text", "prompt", "completion", "messages", "chosen", "rejected")
    texts = {name: checked_text(name, row[name]) for name in names if row.get(name) is not None}
    for name, wanted in (("text", True), ("messages", False)):
        if name in texts and isinstance(texts[name], str) is not wanted:
            kinds = ("a string", "a list of messages")
            raise UserError(f"{name}: expected {kinds[not wanted]}, found {kinds[wanted]}")
    return texts


def is_true(label: Any) -> bool:
    """Return a label written as in JSON (true, 1) or in a table ("true", "1") as a bool."""
    written = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(label, str) and label.strip().lower() in written:
        return written[label.strip().lower()]
    if not isinstance(label, bool | int | float) or label not in (True, False):
        raise UserError(f"label: found {label!r}; must be true or false (or 1 or 0)")
    return bool(label)


LARGEST = 1e18  # its sums and squares fit float32


def finite_number(name: str, value: Any) -> float:
    """Return a number, also one written as text.

    Raises:
        UserError: not a number, not finite, or so large that a float32 loss would not be finite.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{name}: found {value!r}; must be a finite number")
    if abs(number) > LARGEST:
        raise UserError(f"{name}: found {value!r}; must be between -{LARGEST:g} and {LARGEST:g}")
    return number


def checked_answers(row: dict[str, Any]) -> list[Text]:
    answers = row["responses"]
    if not isinstance(answers, list) or len(answers) < 2:
        raise UserError("responses: expected a list of at least 2 answers, the best first")
    return [checked_text("responses", answer) for answer in answers]


def ranked_pairs(row: dict[str, Any]) -> list[tuple[int, int]]:
    """Return (better, worse) of all answers that are not tied: C(K, 2) pairs for K distinct ranks."""
    count = len(row["responses"])
    ranks = row["ranks"] if row.get("ranks") is not None else range(count)
    if not isinstance(ranks, list | range) or len(ranks) != count:
        found = len(ranks) if isinstance(ranks, list) else repr(ranks)
        raise UserError(f"ranks: {found} for {count} responses; expected one for each, 1 for the best")
    numbers = [finite_number("ranks", rank) for rank in ranks]
    return [(i, j) for i in range(count) for j in range(count) if numbers[i] < numbers[j]]
