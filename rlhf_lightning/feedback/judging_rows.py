"""Rows for a judge: pairs that people have labelled, and answers to revise."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.content_hashes import content_hash
from rlhf_lightning.data.messages import Text
from rlhf_lightning.data.row_values import checked_texts
from rlhf_lightning.data.rows import allowed_formats, row_format, shown_columns, split_preference, without_nulls
from rlhf_lightning.errors import UserError
from rlhf_lightning.judging.comparing import Compared, Comparison, Prompt


@dataclass(frozen=True)
class Labelled:
    """A row, and whether the chosen answer is the first of its comparison.

    Args:
        number: of the row, from 1.
        comparison: its two answers, in a random order.
        chosen_first: whether the chosen one is the first.
    """

    number: int
    comparison: Comparison
    chosen_first: bool

    def verdict(self, found: Compared) -> dict[str, Any]:
        """Return a line of verdicts.jsonl."""
        first = (found.probability, found.as_shown, found.swapped)
        chosen, shown, swapped = (value if self.chosen_first else 1 - value for value in first)
        line = {"row": self.number, "probability": chosen, "by_order": [shown, swapped], "principle": found.principle}
        return {**line, **({"reasons": list(found.reasons)} if found.reasons else {})}


def labelled(number: int, given: Mapping[str, Any], seed: int) -> Labelled:
    """Return a row of preferences as a comparison.

    Raises:
        UserError: it has another format, its texts cannot be read, or its two answers are the same.
    """
    row = without_nulls(dict(given))
    if row_format(row) != "preference":
        raise UserError(f"columns {shown_columns(row)}: must be {allowed_formats(['preference'])}")
    prompt, chosen, rejected = split_preference(row | checked_texts(row))
    texts = (_said("chosen", chosen), _said("rejected", rejected))
    if texts[0].strip() == texts[1].strip():
        raise UserError("chosen and rejected: they are the same, so neither is better; leave the row out")
    first = random.Random(f"{seed}:{content_hash([prompt, sorted(texts)])}").random() < 0.5
    return Labelled(number, Comparison(prompt, *(texts if first else texts[::-1])), first)


def answered(given: Mapping[str, Any]) -> tuple[Prompt, str]:
    """Return the prompt of a row, and its answer.

    Raises:
        UserError: it lacks one of them, its texts cannot be read, or the answer is empty.
    """
    row = without_nulls(dict(given))
    row |= checked_texts(row)
    if len(row.get("messages") or ()) > 1:
        return row["messages"][:-1], _answer_to_revise("messages", row["messages"][-1:])
    prompt, answer = row.get("prompt"), row.get("completion")
    if not prompt or answer is None:
        raise UserError(f"columns {shown_columns(row)}: no prompt and completion; give rows with both")
    return prompt, _answer_to_revise("completion", answer)


def _answer_to_revise(name: str, answer: Text) -> str:
    text = _said(name, answer)
    if not text.strip():
        raise UserError(f"{name}: the answer is empty, so there is nothing to revise; leave the row out")
    return text


def _said(name: str, answer: Text) -> str:
    """Return the text of an answer, which may be messages."""
    if isinstance(answer, str):
        return answer
    if len(answer) != 1 or answer[0].get("role") != "assistant" or not isinstance(answer[0].get("content"), str):
        raise UserError(f"{name}: an answer must be a text, or one message of the assistant with text")
    return str(answer[0]["content"])
