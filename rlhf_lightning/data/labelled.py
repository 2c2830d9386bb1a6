"""Tokenising answers that are labelled one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_lightning.data.batches import TokenizedAnswer
from rlhf_lightning.data.messages import Options, Text, template_options
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import CUT_AWAY, Report, blamed_on
from rlhf_lightning.data.row_values import checked_row, is_true
from rlhf_lightning.data.rows import split_preference
from rlhf_lightning.data.templates import is_conversational, render_completion, render_prompt
from rlhf_lightning.data.tokenization import Rendered, tokenize_rendered, truncate


def answers(
    rows: Numbered, tokenizer: Any, source: str, max_length: int | None, max_prompt_length: int | None = None
) -> tuple[list[TokenizedAnswer], Report]:
    """Return rows for KTO: labelled answers, and both answers of a chosen and rejected pair separately."""
    report = Report(source, read=len(rows))
    labelled = _labelled_rows(rows, source)
    texts: list[Rendered] = []
    for row in labelled:
        with blamed_on(source, row.index):
            prompt, templated = render_prompt(tokenizer, row.prompt, row.options), is_conversational(row.prompt)
            answer = render_completion(tokenizer, row.prompt, row.answer, before=prompt, options=row.options)
            texts.append(Rendered(prompt, answer, templated))
    prepared = []
    for row, (prompt_ids, answer_ids) in zip(labelled, tokenize_rendered(tokenizer, texts), strict=True):
        short, (cut,) = truncate(prompt_ids, [answer_ids], max_length, max_prompt_length, tokenizer.bos_token_id)
        report.truncated += len(short) + len(cut) < len(prompt_ids) + len(answer_ids)
        if not cut:
            report.dropped[CUT_AWAY] += 1
            continue
        if not short:
            report.without_prompt.append(row.index + 1)
        prepared.append(TokenizedAnswer(short, cut, row.desirable))
    report.kept = len(prepared)
    report.check(max_length)
    return prepared, report


def check_answers(rows: Numbered, source: str) -> None:
    """Raise UserError for the first row whose format does not fit labelled answers."""
    _labelled_rows(rows, source)


@dataclass(frozen=True)
class _Labelled:
    index: int
    prompt: Text
    answer: Text
    desirable: bool
    options: Options


def _labelled_rows(rows: Numbered, source: str) -> list[_Labelled]:
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
            labelled += [_Labelled(index, prompt, answer, desirable, options) for answer, desirable in labels]
    return labelled
