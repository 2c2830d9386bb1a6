"""Tokenising answers that are labelled one by one."""

from __future__ import annotations

from typing import Any

from rlhf_lightning.data.batches import TokenizedAnswer
from rlhf_lightning.data.messages import template_options
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import Report, blamed_on
from rlhf_lightning.data.row_values import checked_row, is_true
from rlhf_lightning.data.rows import split_preference
from rlhf_lightning.data.single_answers import AnswerRow, single_answers
from rlhf_lightning.data.templates import is_conversational


def answers(
    rows: Numbered, tokenizer: Any, source: str, max_length: int | None, max_prompt_length: int | None = None
) -> tuple[list[TokenizedAnswer], Report]:
    """Return rows for KTO: labelled answers, and both answers of a chosen and rejected pair separately."""
    labelled, report = _labelled_rows(rows, source), Report(source, read=len(rows))
    lengths = (max_length, max_prompt_length)
    return single_answers(labelled, tokenizer, report, lambda label, *_: label, TokenizedAnswer, lengths)


def check_answers(rows: Numbered, source: str) -> None:
    """Raise UserError for the first row whose format does not fit labelled answers."""
    _labelled_rows(rows, source)


def _labelled_rows(rows: Numbered, source: str) -> list[AnswerRow[bool]]:
    labelled = []
    for index, row in rows:
        with blamed_on(source, index):
            kind, row = checked_row(row, "labelled answers", ("labelled", "preference"))
            if kind == "labelled":
                prompt, labels = row["prompt"], [(row["completion"], is_true(row["label"]))]
            else:
                prompt, chosen, rejected = split_preference(row)
                labels = [(chosen, True), (rejected, False)]
            options = template_options(row, is_conversational(prompt))
            labelled += [AnswerRow(index, prompt, answer, desirable, options) for answer, desirable in labels]
    return labelled
