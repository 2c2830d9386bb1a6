"""Who is asked what next. Each function runs in the caller's transaction, using indexes only.

A task has slots: how many labelers it still needs. Assigning it takes a slot; a skip, or a task that was opened and
abandoned, frees it, and the task goes to the end of the queue. Each labeler remembers the position in the queue up to
which tasks were offered, so the next one is found in O(log n), however many were answered.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, false, func, select, true

from rlhf_lightning.feedback.schema import assignments, labelers, tasks

_AT_ONCE = 50  # expired assignments that one call takes back


def next_assignment(connection: Connection, labeler: int, now: float, patience: float) -> tuple[int, bool] | None:
    """Return the number of the task that a labeler gets now, and whether it is a repetition; None if there is none.

    First comes the labeler's open task; then repetitions that are due; then the queue; and after the queue's end any
    remaining repetitions.
    """
    _take_back(connection, now)
    mine = connection.execute(select(labelers).where(labelers.c.number == labeler)).one()
    found = _opened(connection, labeler)
    if found is None:
        found = (
            _repeat(connection, labeler, mine.judged) or _from_queue(connection, mine) or _repeat(connection, labeler)
        )
    if found is None:
        return None
    task, repeat = found
    values = {"state": "open", "expires": now + patience}
    here = _assignment(task, labeler, repeat)
    row = connection.execute(select(assignments.c.state).where(here)).first()
    if row is None:
        connection.execute(assignments.insert().values(task=task, labeler=labeler, repeat=repeat, opened=now, **values))
    elif row.state == "open":
        connection.execute(assignments.update().where(here).values(**values))
    else:
        connection.execute(assignments.update().where(here).values(opened=now, **values))
    return task, repeat


def take_slot(connection: Connection, task: int) -> None:
    """Count one more labeler who has answered, or will answer, a task."""
    connection.execute(
        tasks.update().where(tasks.c.number == task).values(slots=tasks.c.slots - 1, open=tasks.c.slots - 1 > 0)
    )


def has_slot(connection: Connection, task: int) -> bool:
    """Return whether a task still needs a labeler."""
    return bool(connection.scalar(select(tasks.c.open).where(tasks.c.number == task)))


def free_slot(connection: Connection, task: int) -> None:
    """Let one more labeler have a task: it goes to the end of the queue, where nobody has passed it."""
    last = connection.scalar(select(func.max(tasks.c.place))) or 0
    connection.execute(
        tasks.update()
        .where(tasks.c.number == task)
        .values(slots=tasks.c.slots + 1, open=tasks.c.slots + 1 > 0, place=last + 1)
    )


def current_assignment(connection: Connection, task: int, labeler: int) -> Row | None:
    """Return the assignment that an answer belongs to: the open one, or else the latest."""
    rows = connection.execute(
        select(assignments).where(assignments.c.task == task, assignments.c.labeler == labeler)
    ).all()
    known = [row for row in rows if row.state != "waiting" or row.opened is not None]  # shown at least once
    return max(known, key=lambda row: (row.state == "open", row.repeat), default=None)


def set_state(connection: Connection, task: int, labeler: int, repeat: bool, **values: object) -> None:
    """Change an assignment, or create it if there is none."""
    here = _assignment(task, labeler, repeat)
    if not connection.execute(assignments.update().where(here).values(**values)).rowcount:
        connection.execute(assignments.insert().values(task=task, labeler=labeler, repeat=repeat, **values))


def forget(connection: Connection, task: int, labeler: int) -> None:
    """Forget that a labeler ever had a task, which the queue may then give them like any other."""
    connection.execute(assignments.delete().where(_assignment(task, labeler, False)))


def forget_repeat(connection: Connection, task: int, labeler: int) -> None:
    """Cancel the repetition, because the first answer was undone."""
    connection.execute(
        assignments.delete().where(_assignment(task, labeler, True), assignments.c.state.in_(("waiting", "open")))
    )


def _take_back(connection: Connection, now: float) -> None:
    """Free the slots of tasks that were opened and abandoned."""
    left = connection.execute(
        select(assignments).where(assignments.c.state == "open", assignments.c.expires < now).limit(_AT_ONCE)
    ).all()
    for row in left:
        state = "waiting" if row.repeat else "expired"
        set_state(connection, row.task, row.labeler, row.repeat, state=state)
        if not row.repeat:
            free_slot(connection, row.task)


def _opened(connection: Connection, labeler: int) -> tuple[int, bool] | None:
    row = connection.execute(
        select(assignments.c.task, assignments.c.repeat)
        .where(assignments.c.labeler == labeler, assignments.c.state == "open")
        .order_by(assignments.c.opened.desc())
        .limit(1)
    ).first()
    return None if row is None else (row.task, row.repeat)


def _repeat(connection: Connection, labeler: int, judged: int | None = None) -> tuple[int, bool] | None:
    """Return the repetition that is due after `judged` answers, or the first of all."""
    query = select(assignments.c.task).where(assignments.c.labeler == labeler, assignments.c.state == "waiting")
    if judged is not None:
        query = query.where(assignments.c.due <= judged)
    task = connection.scalar(query.order_by(assignments.c.due).limit(1))
    return None if task is None else (task, True)


def _from_queue(connection: Connection, labeler: Row) -> tuple[int, bool] | None:
    had = exists().where(
        assignments.c.task == tasks.c.number,
        assignments.c.labeler == labeler.number,
        assignments.c.state != "expired",
    )
    row = connection.execute(
        select(tasks.c.number, tasks.c.place)
        .where(tasks.c.open == true(), tasks.c.place > labeler.reached, ~had)
        .order_by(tasks.c.place)
        .limit(1)
    ).first()
    reached = connection.scalar(select(func.max(tasks.c.place))) if row is None else row.place
    connection.execute(labelers.update().where(labelers.c.number == labeler.number).values(reached=reached or 0))
    if row is None:
        return None
    take_slot(connection, row.number)
    return row.number, False


def _assignment(task: int, labeler: int, repeat: bool) -> ColumnElement[bool]:
    return and_(
        assignments.c.task == task,
        assignments.c.labeler == labeler,
        assignments.c.repeat == (true() if repeat else false()),
    )
