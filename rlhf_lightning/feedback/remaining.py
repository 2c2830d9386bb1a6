"""What people can still answer of a store's tasks: everybody answers or skips a task once."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import ColumnElement, and_, false, or_, select, true

from rlhf_lightning.feedback.progress import Progress
from rlhf_lightning.feedback.records import EVERYBODY
from rlhf_lightning.feedback.schema import assignments, labelers, tasks
from rlhf_lightning.feedback.store import FeedbackStore


@dataclass(frozen=True)
class Remaining:
    """The answers that can still be given to tasks which need them, and by whom.

    Args:
        answers: how many.
        labelers: those who can give at least one.
        everybody: all people who may answer.
    """

    answers: int
    labelers: tuple[str, ...]
    everybody: tuple[str, ...]


def remaining(store: FeedbackStore, named: Iterable[str] = ()) -> Remaining:
    """Return what the people of a store, and others who are named, can still answer.

    A task that is open on somebody's page counts as one that they can answer; a slot of it that is free, or was
    abandoned, goes to people who have neither answered nor skipped it.
    """
    now = store.clock()
    held = select(assignments.c.task).where(_is_first("open")).correlate(None)
    joined = tasks.outerjoin(
        assignments, and_(assignments.c.task == tasks.c.number, _is_first("open", "done", "skipped"))
    )
    columns = (tasks.c.number, tasks.c.slots, assignments.c.labeler, assignments.c.state, assignments.c.expires)
    unfinished = (
        select(*columns)
        .select_from(joined)
        .where(tasks.c.overlap < EVERYBODY, or_(tasks.c.open == true(), tasks.c.number.in_(held)))
        .order_by(tasks.c.number)
    )
    with store.reading() as connection:
        known = connection.execute(select(labelers.c.number, labelers.c.name, labelers.c.kind)).all()
        rows = connection.execute(unfinished).all()
    people: dict[int, str] = {row.number: row.name for row in known if row.kind == "person"}
    others = [name for name in dict.fromkeys(named) if name not in {row.name for row in known}]
    people |= {-place: name for place, name in enumerate(others, start=1)}  # the store has no number for them yet
    everybody, able, answers = frozenset(people), set[int](), 0
    for (_, slots), of_task in groupby(rows, key=lambda row: (row.number, row.slots)):
        had = {row.labeler: row for row in of_task if row.labeler is not None}
        opened = {who for who, row in had.items() if row.state == "open"}
        left = {who for who in opened if had[who].expires < now}
        free, holding = max(0, slots + len(left)), opened - left
        could = everybody - (had.keys() - left) if free else frozenset[int]()
        answers += min(max(0, slots + len(opened)), min(free, len(could)) + len(holding))
        able |= could | (holding & everybody)
    names = tuple(name for number, name in people.items() if number in able)
    return Remaining(answers, names, tuple(people.values()))


def is_enough(answers: int, requested: int, share: float) -> bool:
    """Return whether this many answers are at least a share of the requested ones.

    >>> is_enough(7, 10, 0.7), is_enough(6, 10, 0.7)
    (True, False)
    """
    return answers >= share * requested - 1e-6  # in floating point, 0.07 * 100 is more than 7


def what_is_missing(found: Progress, left: Remaining, share: float, store: str) -> str:
    """Return a line on the answers that are missing: who can give them, and the remedy where nobody can."""
    start = f"{found.waiting} of {found.tasks} tasks in {store} wait for"
    serves = f"rlhf-label feedback.store={store} serves them"
    if not left.everybody:
        return f"{start} {found.missing} answers of labelers, of whom there are none yet; {serves}"
    judged = {each.name: each.judged for each in found.labelers}
    able = ", ".join(f"{name} ({judged.get(name, 0)} so far)" for name in left.labelers) or "a model"
    asked, lost = f"{start} {left.answers} answers of {able}; {serves}", found.missing - left.answers
    if is_enough(found.requested - lost, found.requested, share):
        return asked
    everybody, enough = left.everybody, math.floor(1000 * (found.requested - lost) / found.requested) / 1000
    return (
        f"{f'{asked}; {lost} more' if left.answers else f'{start} {lost} answers that'} can come from none of "
        f"{', '.join(everybody)}, since everybody answers or skips a task once; "
        f"name a further labeler (rlhf-label feedback.store={store} labelers=[{','.join(everybody)},NAME])"
        + (f" or lower round.label.call.share to {enough}" if enough else "")
    )


def _is_first(*states: str) -> ColumnElement[bool]:
    """Return the condition for a labeler's first assignment of a task, in one of these states."""
    return and_(assignments.c.repeat == false(), assignments.c.state.in_(states))
