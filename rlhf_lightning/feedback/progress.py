"""The progress of the labelling, and each labeler's pace."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, select, true

from rlhf_lightning.feedback.records import EVERYBODY
from rlhf_lightning.feedback.schema import assignments, judgements, labelers, tasks
from rlhf_lightning.feedback.store import FeedbackStore

_HOUR = 3600.0
_RECENT = 200  # latest answers that determine a labeler's usual time
_LATEST = 20  # the same on the labeler's own page


@dataclass(frozen=True)
class LabelerProgress:
    """One labeler: valid answers, answers within the last hour, the median time of the latest ones."""

    name: str
    kind: str
    judged: int
    last_hour: int
    seconds: float | None


@dataclass(frozen=True)
class Progress:
    """The whole store. Check tasks, which everybody answers, do not count as tasks here.

    Args:
        tasks: all of them.
        waiting: those that still need a labeler.
        wanted: answers that they still need.
        opened: those that are open on somebody's page.
        answers: valid answers.
        last_hour: answers within the last hour.
        labelers: one entry each, in the order in which they were added.
    """

    tasks: int
    waiting: int
    wanted: int
    opened: int
    answers: int
    last_hour: int
    labelers: tuple[LabelerProgress, ...]

    @property
    def finished(self) -> int:
        return max(0, self.tasks - self.waiting - self.opened)

    @property
    def hours_left(self) -> float | None:
        """Return the hours left at the pace of the last hour; None if there were no answers."""
        return (self.wanted + self.opened) / self.last_hour if self.last_hour else None


def progress(store: FeedbackStore) -> Progress:
    """Return the progress of a store's labelling, by its clock."""
    now = store.clock()
    with store.reading() as connection:
        ordinary = tasks.c.overlap < EVERYBODY
        total = _count(connection, ordinary)
        waiting = _count(connection, ordinary & (tasks.c.open == true()))
        wanted = connection.scalar(
            select(func.sum(tasks.c.slots)).where(tasks.c.overlap < EVERYBODY, tasks.c.open == true())
        )
        opened = connection.scalar(
            select(func.count())
            .select_from(assignments.join(tasks, tasks.c.number == assignments.c.task))
            .where(ordinary, tasks.c.slots <= 0, assignments.c.state == "open", assignments.c.expires >= now)
        )
        rows = connection.execute(select(labelers).order_by(labelers.c.number)).all()
        everybody = tuple(
            LabelerProgress(row.name, row.kind, row.judged, *_pace(connection, row.number, now)) for row in rows
        )
    answers, last_hour = sum(each.judged for each in everybody), sum(each.last_hour for each in everybody)
    return Progress(total, waiting, wanted or 0, opened or 0, answers, last_hour, everybody)


@dataclass(frozen=True)
class Pace:
    """What a labeler sees of the work: the median seconds of their latest answers, and the answers still needed."""

    seconds: float | None
    wanted: int


def pace(store: FeedbackStore, labeler: str) -> Pace:
    """Return a labeler's pace, and how many answers all tasks still need from anybody."""
    with store.reading() as connection:
        number = connection.scalar(select(labelers.c.number).where(labelers.c.name == labeler))
        latest = connection.scalars(
            select(judgements.c.seconds)
            .where(judgements.c.labeler == number, judgements.c.seconds.is_not(None))
            .order_by(judgements.c.id.desc())
            .limit(_LATEST)
        ).all()
        wanted = connection.scalar(
            select(func.sum(tasks.c.slots)).where(tasks.c.open == true(), tasks.c.overlap < EVERYBODY)
        )
    return Pace(statistics.median(latest) if latest else None, wanted or 0)


def _count(connection: Connection, condition: ColumnElement[bool]) -> int:
    return connection.scalar(select(func.count()).select_from(tasks).where(condition)) or 0


def _pace(connection: Connection, labeler: int, now: float) -> tuple[int, float | None]:
    """Return the answers within the last hour minus undone ones, and the median time of the latest."""
    latest = connection.execute(
        select(judgements.c.created, judgements.c.seconds, judgements.c.verdict)
        .where(judgements.c.labeler == labeler, judgements.c.created >= now - _HOUR)
        .order_by(judgements.c.id.desc())
    ).all()
    answered = sum({"undo": -1, "skip": 0}.get(row.verdict, 1) for row in latest)
    seconds = [row.seconds for row in latest if row.seconds is not None][:_RECENT]
    return max(0, answered), statistics.median(seconds) if seconds else None
