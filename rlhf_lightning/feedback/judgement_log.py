"""Judgements as rows: appended, and read without undone ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, select

from rlhf_lightning.feedback.records import STRONGEST, VERDICTS, Answer, Judgement
from rlhf_lightning.feedback.schema import damaged, judgements, labelers, tasks

_AT_ONCE = 5000
_STRENGTHS = (None, *range(1, STRONGEST + 1))


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
    """Return the labeler's last valid judgement."""
    return connection.execute(
        _holding(select(judgements)).where(judgements.c.labeler == labeler).order_by(judgements.c.id.desc()).limit(1)
    ).first()


def effective_judgements(connection: Connection) -> Iterator[Judgement]:
    """Yield the valid judgements, in order of time.

    Raises:
        UserError: the row of one is damaged.
    """
    names = {row.number: row.name for row in connection.execute(select(labelers.c.number, labelers.c.name))}
    ids = {row.number: row.id for row in connection.execute(select(tasks.c.number, tasks.c.id))}
    of = judgements.c
    said = (of.verdict, of.choice, of.strength, of.ranks, of.more)
    query = _holding(select(of.id, of.task, of.labeler, of.seconds, of.created, of.repeat, *said)).order_by(of.id)
    rows = connection.execute(query.execution_options(yield_per=_AT_ONCE))
    for number, task, labeler, seconds, created, repeat, *answer in rows:
        try:
            judgement = Judgement(number, ids[task], names[labeler], _answer(*answer), seconds, created, repeat)
            if not all(isinstance(number, float | int) for number in (seconds or 0.0, created)):
                raise TypeError("its times are not numbers")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise damaged(f"judgement {number}", error) from error
        yield judgement


def _holding(query: Select[Any]) -> Select[Any]:
    undoing = judgements.alias()
    undone = exists().where(undoing.c.undoes == judgements.c.id)
    return query.select_from(judgements).where(judgements.c.verdict != "undo", ~undone)


def _answer(verdict: str, choice: int | None, strength: int | None, ranks: str | None, more: str | None) -> Answer:
    ranked = _ranks(ranks) if ranks else None
    is_choice = verdict == "choice"
    if verdict not in VERDICTS or choice not in ((0, 1) if is_choice else (None,)) or strength not in _STRENGTHS:
        raise ValueError(f"verdict {verdict!r}, choice {choice!r}, strength {strength!r}")
    if not more:
        return Answer(verdict, choice, strength, ranked)
    beside = json.loads(more)
    flags, note = tuple(beside.get("flags", ())), beside.get("note", "")
    return Answer(verdict, choice, strength, ranked, beside.get("scores", {}), flags, note)


@lru_cache(maxsize=4096)
def _ranks(text: str) -> tuple[int, ...]:
    """Return the ranks, cached: there are only a few orders of a few answers."""
    ranks = tuple(json.loads(text))
    if not all(isinstance(rank, int) for rank in ranks):
        raise ValueError(f"ranks {text!r:.60}")
    return ranks
