"""Rows as people store them: recognising the format, splitting.

The formats are TRL's (https://huggingface.co/docs/trl/dataset_formats), each with plain strings or with lists of
`{role, content}`:

    text | messages | prompt | prompt + completion | prompt + completion + label | prompt + completion + reward
    prompt + chosen + rejected, optional margin (without `prompt` it is what both answers start with)
    prompt + responses (best first), optional ranks (1 is best; equal ranks are a tie)
    prompt + completions (steps) + labels (true for a right one); the steps are plain strings
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from rlhf_lightning.data.messages import Text
from rlhf_lightning.errors import UserError

if TYPE_CHECKING:
    import datasets  # type: ignore[import-untyped]

Source: TypeAlias = "str | Path | Sequence[dict[str, Any]] | datasets.Dataset"

FORMATS: dict[str, tuple[str, ...]] = {  # the first whose columns are all present applies
    "preference": ("chosen", "rejected"),
    "ranked": ("prompt", "responses"),
    "steps": ("prompt", "completions", "labels"),
    "labelled": ("prompt", "completion", "label"),
    "rewarded": ("prompt", "completion", "reward"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
    "prompt": ("prompt",),
}

FORMAT_COLUMNS = {column for columns in FORMATS.values() for column in columns}


def row_format(row: dict[str, Any]) -> str:
    """Return the name of a row's format, a key of `FORMATS`. None counts as absent; extra columns are allowed.

    >>> row_format({"prompt": "2 + 2 =", "completion": " 4", "source": "book"})
    'prompt_completion'

    Raises:
        UserError: no format has all its columns present.
    """
    present = {name for name, value in row.items() if value is not None}
    for name, columns in FORMATS.items():
        if present.issuperset(columns):
            return name
    raise UserError(f"columns {shown_columns(row)}: unknown format; must be {allowed_formats()}; rename the columns")


def shown_columns(row: dict[str, Any]) -> str:
    """Return the columns of a row, and those of a format that are null, for messages.

    >>> shown_columns({"prompt": "2 + 2 =", "completion": None})
    'prompt (completion is null)'
    """
    present = ", ".join(sorted(name for name, value in row.items() if value is not None)) or "(none)"
    nulls = sorted(name for name, value in row.items() if value is None and name in FORMAT_COLUMNS)
    return f"{present} ({', '.join(nulls)} {'is' if len(nulls) == 1 else 'are'} null)" if nulls else present


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row without its null columns, except those of a format: `shown_columns` names them."""
    return {name: value for name, value in row.items() if value is not None or name in FORMAT_COLUMNS}


def allowed_formats(names: Iterable[str] = tuple(FORMATS)) -> str:
    """Return the formats by their columns, for messages."""
    return " | ".join(" + ".join(FORMATS[name]) for name in names)


def split_preference(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    """Return prompt, chosen and rejected of a preference row.

    Without a `prompt` column it is what both answers start with: whole messages up to the assistant's, or text up to
    the last white space that both share (white space stays with the answers). Answers that are whole conversations, as
    in TRL's `ultrafeedback_binarized`, are also split if the row has a `prompt` column.

    >>> split_preference({"chosen": "The sky is blue.", "rejected": "The sky is black."})
    ('The sky is', ' blue.', ' black.')

    Raises:
        UserError: one answer is text and the other messages, the prompt is not that of the conversations, or these
            differ before the last user message.
    """
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise UserError("chosen and rejected: one is a string and the other messages; both must be of one kind")
    if isinstance(chosen, str):
        return (prompt, chosen, rejected) if prompt is not None else _split_text(chosen, rejected)
    if isinstance(prompt, list) and not (chosen[: len(prompt)] == prompt == rejected[: len(prompt)]):
        return prompt, chosen, rejected
    length = 0 if prompt is None or isinstance(prompt, str) else len(prompt)
    if not length:
        while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
            length += 1
        while length and chosen[length - 1].get("role") == "assistant":  # a shared answer is not asked
            length -= 1
    shared = chosen[:length]
    if isinstance(prompt, str) and prompt.strip() not in {str(message.get("content")).strip() for message in shared}:
        raise UserError(
            "prompt: it is text, and not among the messages that chosen and rejected begin with; give it as messages, "
            "or leave the column out"
        )
    answers = (chosen[length:], rejected[length:])
    if any(message.get("role") in ("user", "system") for answer in answers for message in answer):
        raise UserError(
            "chosen and rejected: the conversations differ before the user's last message, so the user's words would "
            "be learned as an answer; both must share all but the last answer"
        )
    return shared, *answers


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    length = 0
    while length < min(len(chosen), len(rejected)) and chosen[length] == rejected[length]:
        length += 1
    if chosen != rejected:  # not inside a word
        words = re.match(r".*(?=\s)", chosen[:length], re.DOTALL)
        length = len(words.group()) if words else 0
    return chosen[:length], chosen[length:], rejected[length:]


def row_prompt(row: dict[str, Any]) -> Text:
    """Return the part of a row that asks, which must not be in both halves of a split. For a `text` row, all of it.

    Raises:
        UserError: unknown format.
    """
    conversations = isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list)
    if row.get("prompt") is not None and not conversations:
        return row["prompt"]
    kind = row_format(row)
    if kind == "preference":
        return split_preference(row)[0]
    return split_messages(row["messages"])[0] if kind == "messages" else row["text"]


def split_messages(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the messages before the last assistant turn, and that turn (empty if someone else speaks last)."""
    start = len(messages)
    while start and messages[start - 1].get("role") == "assistant":
        start -= 1
    return messages[:start], messages[start:]


def split_by_prompt(rows: Sequence[dict[str, Any]], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Return the indices of train and of val rows. Each has at least one prompt, and no prompt is in both.

    Raises:
        UserError: there is only one prompt.
    """
    keys = [json.dumps(row_prompt(row), sort_keys=True, default=repr) for row in rows]
    prompts = list(dict.fromkeys(keys))
    if len(prompts) < 2:
        raise UserError(
            f"data.val_fraction={fraction}: cannot split {len(prompts)} prompt by prompt; give data.val instead"
        )
    count = min(max(round(fraction * len(prompts)), 1), len(prompts) - 1)
    held_out = {prompts[i] for i in np.random.default_rng([seed]).permutation(len(prompts))[:count]}
    train = [i for i, key in enumerate(keys) if key not in held_out]
    return train, [i for i, key in enumerate(keys) if key in held_out]
