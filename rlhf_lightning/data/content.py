"""Check that tokenised rows have something to learn: words that the tokenizer knows, and answers that are not empty."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_lightning.data.batches import IGNORED
from rlhf_lightning.errors import UserError

log = logging.getLogger(__name__)

FEW = 8  # distinct tokens: answers of only white space have no more


def check_content(rows: Sequence[Any], tokenizer: Any, source: str) -> None:
    """Refuse rows of unknown tokens only, and rows whose answers are all empty.

    Warn if more than half of the tokens are unknown.

    Raises:
        UserError: there is nothing to learn.
    """
    _check_known(rows, tokenizer, source)
    _say_what_is_the_same(rows, source)
    if rows and not hasattr(rows[0], "columns"):
        _check_answers(rows, tokenizer, source)


def _check_known(rows: Sequence[Any], tokenizer: Any, source: str) -> None:
    unknown, special = tokenizer.unk_token_id, set(tokenizer.all_special_ids)
    if unknown is None or unknown in (tokenizer.eos_token_id, tokenizer.pad_token_id):
        return  # the unknown token is indistinguishable from others, as in GPT-2
    others = np.array(sorted(special - {unknown}), dtype=np.int64)
    lost = words = 0
    for row in rows:
        for ids in row.sequences():
            tokens = np.asarray(ids, dtype=np.int64)
            lost += int((tokens == unknown).sum())
            words += len(tokens) - int(np.isin(tokens, others).sum())
    if lost and lost == words:
        raise UserError(
            f"{source}: every token of its rows is {tokenizer.unk_token}: the tokenizer knows none of their words; "
            "choose a model of their language"
        )
    if lost > words / 2:
        log.warning(
            f"{source}: {100 * lost / words:.0f}% of the tokens are {tokenizer.unk_token}, unknown to the model"
        )


def _say_what_is_the_same(rows: Sequence[Any], source: str) -> None:
    """Warn if all rows have the same prompt, where answers are sampled, or the same answer, where one is given."""
    if len(rows) < 2:
        return
    if hasattr(rows[0], "columns"):
        what, read = "prompt", (tuple(row.input_ids) for row in rows)
    elif hasattr(rows[0], "answers"):
        return
    else:
        what, read = "answer", (tuple(map(tuple, _answers(row))) for row in rows)
    first = next(read)
    if all(each == first for each in read):
        log.warning(f"{source}: all {len(rows)} rows have the same {what}; check that the right column is read")


def _answers(row: Any) -> list[list[int]]:
    """Return the tokens of a row's answer, or of each of its answers."""
    if hasattr(row, "labels"):
        return [[label for label in row.labels if label != IGNORED]]
    answers: list[list[int]] = row.answers if hasattr(row, "answers") else [row.answer]
    return answers


def _check_answers(rows: Sequence[Any], tokenizer: Any, source: str) -> None:
    learned: set[int] = set()
    for row in rows:
        learned.update(*_answers(row))
        if len(learned) > FEW:
            return
    ids = sorted(learned - {tokenizer.eos_token_id})
    if not ids or not tokenizer.decode(ids).strip():
        raise UserError(
            f"{source}: every answer (completion, or last message) is empty; check that the right column is read"
        )
