"""Rows of a file as the material of tasks: prompts, existing responses, known answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.data.files import Row
from rlhf_lightning.data.messages import Text
from rlhf_lightning.data.preparation import Numbered, question_of
from rlhf_lightning.data.reading import read_records
from rlhf_lightning.data.report import blamed_on
from rlhf_lightning.data.row_values import checked_answers, checked_texts
from rlhf_lightning.data.rows import allowed_formats, row_format, shown_columns, split_preference, without_nulls
from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.feedback.records import Prompt, Response, Task
from rlhf_lightning.feedback.tasks import Sample, check_task

_TEXTS = (("responses",), ("chosen", "rejected"), ("completion",), ("completions",))  # where responses can be
_WITH_RESPONSES = ("ranked", "preference", "prompt_completion", "labelled", "rewarded")


@dataclass(frozen=True)
class Prompts:
    """Rows with a prompt, each prompt once.

    Args:
        source: their file, named in messages.
        rows: the rows with their index in the file.
        questions: the prompt of each row.
        repeated: how many rows had a prompt that had occurred before.
    """

    source: str
    rows: Numbered
    questions: list[Prompt]
    repeated: int

    def __len__(self) -> int:
        return len(self.rows)


def read_prompts(source: str | Path | Sequence[Row], limit: int | None = None) -> Prompts:
    """Return the prompts of rows of any format that has one.

    Args:
        source: an argument of `read_records`, or the rows themselves.
        limit: read at most this many rows.

    Raises:
        UserError: the file cannot be read, or a row has no prompt.
    """
    rows, name = _read(source, "prompts", limit)
    first: dict[str, tuple[int, Row, Prompt]] = {}
    for index, row in enumerate(rows):
        with blamed_on(name, index):
            question = question_of(row)
        first.setdefault(_identity(question), (index, row, question))
    kept = list(first.values())
    return Prompts(name, [(index, row) for index, row, _ in kept], [each[2] for each in kept], len(rows) - len(kept))


def read_responses(source: str | Path | Sequence[Row], limit: int | None = None) -> list[Sample]:
    """Return prompts with the responses that a file has for them; rows with the same prompt are merged.

    A row has `prompt` and `responses`, `chosen` and `rejected`, or `prompt` and one `completion`. A column `source` (or
    `sources`, one per response) says which policy they came from.

    Raises:
        UserError: the file cannot be read, or a row has no response, or one that has more than the assistant's words.
    """
    rows, name = _read(source, "responses", limit)
    found: dict[str, tuple[Prompt, list[Response]]] = {}
    for index, row in enumerate(rows):
        with blamed_on(name, index):
            prompt, said = _answers(row)
            texts = [_spoken(prompt, answer) for answer in said]
            sources = _sources(row, len(texts))
        responses = found.setdefault(_identity(prompt), (prompt, []))[1]
        responses += [Response(text, origin) for text, origin in zip(texts, sources, strict=True)]
    return [Sample(prompt, tuple(responses)) for prompt, responses in found.values()]


def read_checks(source: str | Path | Sequence[Row], seed: int = 0) -> list[Task]:
    """Return a check task for each row with `chosen` and `rejected`: the chosen one is known to be better.

    Raises:
        UserError: the file cannot be read, a row has no such pair, its two answers are the same, or two rows contradict
            each other.
    """
    rows, name = _read(source, "checks", None)
    tasks: list[Task] = []
    known: dict[str, tuple[int, str]] = {}
    for index, row in enumerate(rows):
        with blamed_on(name, index):
            if row_format(row) != "preference":
                raise UserError(f"columns {shown_columns(row)}: a check needs {allowed_formats(['preference'])}")
            prompt, (best, worse) = _answers(row)
            task = check_task(prompt, _spoken(prompt, best), _spoken(prompt, worse), seed)
            first, right = known.setdefault(task.id, (index, _spoken(prompt, best)))
            if right != _spoken(prompt, best):
                raise UserError(f"chosen and rejected: the other way round than in row {first + 1}; leave one out")
            tasks.append(task)
    return tasks


def _read(source: str | Path | Sequence[Row], key: str, limit: int | None) -> tuple[list[Row], str]:
    if isinstance(source, str | Path):
        with blaming(f"{key}: {source} cannot be read"):
            return [without_nulls(row) for row in read_records(source, limit=limit)], str(source)
    return [without_nulls(dict(row)) for row in source][:limit], key


def _answers(row: Row) -> tuple[Prompt, list[Text]]:
    kind = row_format(row)
    if kind not in _WITH_RESPONSES:
        raise UserError(f"columns {shown_columns(row)}: no responses found; must be {allowed_formats(_WITH_RESPONSES)}")
    given = [names for names in _TEXTS if any(row.get(name) is not None for name in names)]
    if len(given) > 1:
        raise UserError(
            f"columns {shown_columns(row)}: responses in {given[0][0]} and in {given[1][0]}; only one of them is read, "
            "so leave the other out"
        )
    row = row | checked_texts(row)
    if kind == "preference":
        prompt, chosen, rejected = split_preference(row)
        return prompt, [chosen, rejected]
    if kind == "ranked":
        return row["prompt"], checked_answers(row)
    return row["prompt"], [row["completion"]]


def _spoken(prompt: Prompt, answer: Text) -> str:
    """Return the words of a response, which labelers see."""
    if isinstance(answer, str):
        return answer
    if len(answer) != 1 or answer[0].get("role") != "assistant" or answer[0].get("tool_calls"):
        raise UserError("a response must be a text, or one message of the assistant without tool calls")
    if isinstance(prompt, str):
        raise UserError("prompt: it is text and the response a message; give both as texts, or both as messages")
    return str(answer[0]["content"])


def _sources(row: Row, count: int) -> list[str]:
    given: Any = row.get("sources", row.get("source", ""))
    sources = given if isinstance(given, list) else [given] * count
    if len(sources) != count or not all(isinstance(each, str) for each in sources):
        raise UserError(f"sources: found {given!r}; it must be one text for each of the {count} responses")
    return sources


def _identity(prompt: Prompt) -> str:
    return json.dumps(prompt, sort_keys=True)
