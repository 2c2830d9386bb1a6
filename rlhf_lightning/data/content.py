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
    """Refuse rows of unknown tokens only, and demonstrations whose answers are all empty.

    Warn if more than half of the tokens are unknown.

    Raises:
        UserError: there is nothing to learn.
    """
    _check_known(rows, tokenizer, source)
    _say_what_is_the_same(rows, source)
    if rows and hasattr(rows[0], "labels"):
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
    """Warn if all rows have the same prompt (for PPO), or all the same answer (for demonstrations)."""
    if len(rows) < 2:
        return
    if hasattr(rows[0], "columns"):
        what, read = "prompt", (tuple(row.input_ids) for row in rows)
    elif hasattr(rows[0], "labels"):
        what, read = "answer", (tuple(label for label in row.labels if label != IGNORED) for row in rows)
    else:
        return
    first = next(read)
    if all(each == first for each in read):
        log.warning(f"{source}: all {len(rows)} rows have the same {what}; check that the right column is read")


def _check_answers(rows: Sequence[Any], tokenizer: Any, source: str) -> None:
    learned: set[int] = set()
    for row in rows:
        learned.update(row.labels)
        if len(learned) > FEW:
            return
    ids = sorted(learned - {IGNORED, tokenizer.eos_token_id})
    if not ids or not tokenizer.decode(ids).strip():
        raise UserError(
            f"{source}: every answer (completion, or last message) is empty; the model would only learn to stop"
        )
