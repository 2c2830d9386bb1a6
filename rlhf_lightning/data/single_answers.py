"""Tokenising answers one by one, each with what is known of it: a label, or rewards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rlhf_lightning.data.messages import Options, Text
from rlhf_lightning.data.report import CUT_AWAY, Report, blamed_on
from rlhf_lightning.data.templates import is_conversational, render_completion, render_prompt
from rlhf_lightning.data.tokenization import Rendered, tokenize_rendered, truncate

Known = TypeVar("Known")
Kept = TypeVar("Kept")
Tokenized = TypeVar("Tokenized")


@dataclass(frozen=True)
class AnswerRow(Generic[Known]):
    """A prompt, one answer to it, and what is known of the answer."""

    index: int
    prompt: Text
    answer: Text
    known: Known
    options: Options


def single_answers(
    rows: Sequence[AnswerRow[Known]],
    tokenizer: Any,
    report: Report,
    keep: Callable[[Known, int, int], Kept],
    make: Callable[[list[int], list[int], Kept], Tokenized],
    lengths: tuple[int | None, int | None],
) -> tuple[list[Tokenized], Report]:
    """Return the tokenised rows, and the report with what was truncated and dropped.

    Args:
        rows: to tokenise.
        tokenizer: the policy's.
        report: of the file that they come from.
        keep: what is known of an answer, its number of tokens, how many of them are kept -> what is kept of it.
        make: prompt, answer and that -> a tokenised row.
        lengths: most tokens of prompt and answer together, and of the prompt; None: no limit.
    """
    texts: list[Rendered] = []
    for row in rows:
        with blamed_on(report.source, row.index):
            prompt, templated = render_prompt(tokenizer, row.prompt, row.options), is_conversational(row.prompt)
            answer = render_completion(tokenizer, row.prompt, row.answer, before=prompt, options=row.options)
            texts.append(Rendered(prompt, answer, templated))
    prepared = []
    for row, (prompt_ids, answer_ids) in zip(rows, tokenize_rendered(tokenizer, texts), strict=True):
        short, (cut,) = truncate(prompt_ids, [answer_ids], *lengths, tokenizer.bos_token_id)
        with blamed_on(report.source, row.index):
            kept = keep(row.known, len(answer_ids), len(cut))
        report.truncated += len(short) + len(cut) < len(prompt_ids) + len(answer_ids)
        if not cut:
            report.dropped[CUT_AWAY] += 1
            continue
        if not short:
            report.without_prompt.append(row.index + 1)
        prepared.append(make(short, cut, kept))
    report.kept = len(prepared)
    report.check(lengths[0])
    return prepared, report
