"""The progress of the labelling, and each labeler's pace."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from sqlalchemy import Connection, case, false, func, select, true

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
        requested: answers that all of them ask for, each labeler's first one.
        waiting: tasks that still need an answer, also where it is being given.
        wanted: answers that they still need, besides those that are being given.
        opened: answers that they need and that are being given: the task is open on somebody's page.
        pages: pages on which a task is open, also for a repetition.
        answers: valid answers.
        last_hour: answers within the last hour.
        labelers: one entry each, in the order in which they were added.
    """

    tasks: int
    requested: int
    waiting: int
    wanted: int
    opened: int
    pages: int
    answers: int
    last_hour: int
    labelers: tuple[LabelerProgress, ...]

    @property
    def finished(self) -> int:
        return self.tasks - self.waiting

    @property
    def missing(self) -> int:
        return self.wanted + self.opened

    @property
    def hours_left(self) -> float | None:
        """Return the hours left at the pace of the last hour; None if there were no answers."""
        return self.missing / self.last_hour if self.last_hour else None


def progress(store: FeedbackStore) -> Progress:
    """Return the progress of a store's labelling, by its clock."""
    now = store.clock()
    with store.reading() as connection:
        ordinary = tasks.c.overlap < EVERYBODY
        total, requested = connection.execute(
            select(func.count(), func.sum(tasks.c.overlap)).select_from(tasks).where(ordinary)
        ).one()
        waiting, wanted, opened = _needed(connection, now)
        pages = connection.scalar(
            select(func.count())
            .select_from(assignments.join(tasks, tasks.c.number == assignments.c.task))
            .where(ordinary, assignments.c.state == "open", assignments.c.expires >= now)
        )
        rows = connection.execute(select(labelers).order_by(labelers.c.number)).all()
        everybody = tuple(
            LabelerProgress(row.name, row.kind, row.judged, *_pace(connection, row.number, now)) for row in rows
        )
    answers, last_hour = sum(each.judged for each in everybody), sum(each.last_hour for each in everybody)
    return Progress(total, requested or 0, waiting, wanted, opened, pages or 0, answers, last_hour, everybody)


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


def _needed(connection: Connection, now: float) -> tuple[int, int, int]:
    """Return how many tasks still need answers, how many more they need, and how many of those are being given.

    A page that was abandoned holds a slot of its task until it is taken back; that answer is not being given.
    """
    waiting, wanted = connection.execute(
        select(func.count(), func.sum(tasks.c.slots))
        .select_from(tasks)
        .where(tasks.c.overlap < EVERYBODY, tasks.c.open == true())
    ).one()
    wanted, opened = wanted or 0, 0
    held = connection.execute(
        select(tasks.c.slots, func.count(), func.sum(case((assignments.c.expires >= now, 1), else_=0)))
        .select_from(assignments.join(tasks, tasks.c.number == assignments.c.task))
        .where(tasks.c.overlap < EVERYBODY, assignments.c.state == "open", assignments.c.repeat == false())
        .group_by(tasks.c.number, tasks.c.slots)
    ).all()
    for slots, pages, in_time in held:
        needed, counted = max(0, slots + pages), max(0, slots)
        given = min(in_time, needed)
        waiting += needed > 0 and not counted
        wanted += needed - given - counted
        opened += given
    return waiting, wanted, opened


def _pace(connection: Connection, labeler: int, now: float) -> tuple[int, float | None]:
    """Return the answers within the last hour without undone ones, and the median time of the latest."""
    latest = connection.execute(
        select(judgements.c.id, judgements.c.seconds, judgements.c.verdict, judgements.c.undoes)
        .where(judgements.c.labeler == labeler, judgements.c.created >= now - _HOUR)
        .order_by(judgements.c.id.desc())
    ).all()
    undone = {row.undoes for row in latest}  # an answer is undone later than it is given
    answered = sum(row.verdict not in ("undo", "skip") and row.id not in undone for row in latest)
    seconds = [row.seconds for row in latest if row.seconds is not None][:_RECENT]
    return answered, statistics.median(seconds) if seconds else None
