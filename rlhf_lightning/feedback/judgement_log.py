"""Judgements as rows: appended, and read without those that were undone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, select

from rlhf_lightning.feedback.records import Answer, Judgement
from rlhf_lightning.feedback.schema import judgements, labelers, tasks

_AT_ONCE = 5000


def append(
    connection: Connection,
    task: int,
    labeler: int,
    answer: Answer | None,
    repeat: bool,
    seconds: float | None,
    created: float,
    key: str,
    undoes: int | None = None,
) -> int:
    """Append a judgement, or one without an answer that undoes another, and return its id."""
    said: dict[str, Any] = {"verdict": "undo", "undoes": undoes}
    if answer is not None:
        more = {"scores": dict(answer.scores), "flags": list(answer.flags), "note": answer.note}
        said = {
            "verdict": answer.verdict,
            "choice": answer.choice,
            "strength": answer.strength,
            "ranks": None if answer.ranks is None else json.dumps(list(answer.ranks)),
            "more": json.dumps({name: value for name, value in more.items() if value}) if any(more.values()) else None,
        }
    result = connection.execute(
        judgements.insert().values(
            key=key, task=task, labeler=labeler, repeat=repeat, seconds=seconds, created=created, **said
        )
    )
    assert result.inserted_primary_key is not None
    return int(result.inserted_primary_key[0])


def latest_of(connection: Connection, labeler: int) -> Row | None:
    """Return the labeler's last judgement that holds."""
    return connection.execute(
        _holding(select(judgements)).where(judgements.c.labeler == labeler).order_by(judgements.c.id.desc()).limit(1)
    ).first()


def effective_judgements(connection: Connection) -> Iterator[Judgement]:
    """Yield the judgements that hold, in the order of time."""
    columns = [column for column in judgements.c if column.name not in ("key", "task", "labeler")]
    query = (
        _holding(select(*columns, tasks.c.id.label("task"), labelers.c.name.label("labeler")))
        .join(tasks, tasks.c.number == judgements.c.task)
        .join(labelers, labelers.c.number == judgements.c.labeler)
        .order_by(judgements.c.id)
        .execution_options(yield_per=_AT_ONCE)
    )
    for row in connection.execute(query):
        yield Judgement(row.id, row.task, row.labeler, _answer(row), row.seconds, row.created, row.repeat)


def _holding(query: Select[Any]) -> Select[Any]:
    undoing = judgements.alias()
    undone = exists().where(undoing.c.undoes == judgements.c.id)
    return query.select_from(judgements).where(judgements.c.verdict != "undo", ~undone)


def _answer(row: Row) -> Answer:
    more = json.loads(row.more) if row.more else {}
    return Answer(
        row.verdict,
        row.choice,
        row.strength,
        tuple(json.loads(row.ranks)) if row.ranks else None,
        more.get("scores", {}),
        tuple(more.get("flags", ())),
        more.get("note", ""),
    )
