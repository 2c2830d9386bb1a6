"""Converting tasks to database rows and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from rlhf_lightning.feedback.records import Prompt, Response, Task
from rlhf_lightning.feedback.schema import damaged, responses, tasks

_AT_ONCE = 2000


def insert_tasks(connection: Connection, new: Sequence[Task]) -> int:
    """Insert tasks whose ids do not exist yet, at the end of the queue, and return how many those are."""
    known = set(connection.scalars(select(tasks.c.id).where(tasks.c.id.in_([task.id for task in new]))))
    missing = list({task.id: task for task in new if task.id not in known}.values())
    if not missing:
        return 0
    number = connection.scalar(select(func.max(tasks.c.number))) or 0
    place = connection.scalar(select(func.max(tasks.c.place))) or 0
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for offset, task in enumerate(missing, start=1):
        rows.append(
            {
                "number": number + offset,
                "id": task.id,
                "kind": task.kind,
                "prompt": json.dumps(task.prompt),
                "overlap": task.overlap,
                "reask": task.reask,
                "check_answer": task.check,
                "slots": task.overlap,
                "open": True,
                "place": place + offset,
            }
        )
        parts += [
            {
                "task": number + offset,
                "position": position,
                "text": json.dumps(response.text),
                "source": json.dumps(response.source),
                "scores": json.dumps(list(response.scores)),
            }
            for position, response in enumerate(task.responses)
        ]
    connection.execute(tasks.insert(), rows)
    connection.execute(responses.insert(), parts)
    return len(missing)


def one_task(connection: Connection, number: int) -> Task:
    """Return the task with an existing number.

    Raises:
        UserError: its rows are damaged.
    """
    rows = list(connection.execute(_query().where(tasks.c.number == number)))
    if not rows:
        raise damaged(f"task {number}", ValueError("it has no responses"))
    return _task(rows)


def read_tasks(connection: Connection) -> Iterator[Task]:
    """Yield all tasks by number.

    Raises:
        UserError: the rows of one are damaged.
    """
    rows = connection.execute(_query().execution_options(yield_per=_AT_ONCE))
    for _, of_task in groupby(rows, key=lambda row: row.number):
        yield _task(list(of_task))


def _query() -> Select[Any]:
    columns = (responses.c.position, responses.c.text, responses.c.source, responses.c.scores)
    joined = select(tasks, *columns).outerjoin(responses, responses.c.task == tasks.c.number)  # none: damaged
    return joined.order_by(tasks.c.number, responses.c.position)


def _task(rows: list[Row]) -> Task:
    first = rows[0]
    try:
        shown = tuple(Response(_text(row.text), _source(row.source), _scores(row.scores)) for row in rows)
        prompt = _prompt(first.prompt)
        return Task(first.id, first.kind, prompt, shown, first.overlap, first.reask, first.check_answer)
    except (ValueError, TypeError) as error:
        raise damaged(f"task {first.id}", error) from error


def _prompt(written: str) -> Prompt:
    prompt = json.loads(written)
    if isinstance(prompt, list) and all(isinstance(each, dict) for each in prompt):
        return prompt
    return _text(written)


def _text(written: str) -> str:
    text = json.loads(written)
    if not isinstance(text, str):
        raise ValueError(f"{written!r:.60} is not a text")
    return text


@lru_cache(maxsize=1024)
def _source(text: str) -> str:
    """Return the source, cached: few differ, and a large store is read in a third of the time."""
    return str(json.loads(text))


@lru_cache(maxsize=1024)
def _scores(text: str) -> tuple[float, ...]:
    return tuple(json.loads(text))
