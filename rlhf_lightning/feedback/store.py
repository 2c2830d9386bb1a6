"""The store: tasks, labelers, assignments, and judgements that are appended and never changed."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice

from sqlalchemy import Connection, func, select

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import queue
from rlhf_lightning.feedback.connection import Database
from rlhf_lightning.feedback.judgement_log import append, effective_judgements, latest_of
from rlhf_lightning.feedback.records import LABELER_KINDS, Answer, Judgement, Labeler, ShownTask, Task
from rlhf_lightning.feedback.schema import facts, judgements, labelers, prepare, tasks
from rlhf_lightning.feedback.task_rows import insert_tasks, one_task, read_tasks
from rlhf_lightning.value_types import labeler_name

DEFAULT_STORE = "sqlite:///outputs/feedback.db"
_CHUNK = 500


class FeedbackStore:
    """Tasks and judgements in a database. Threads may share a store; each process needs its own object.

    Args:
        url: a SQLAlchemy URL; the default is an SQLite file.
        patience: seconds to wait for a lock that another process holds.
        returns_after: seconds after which a task that was opened and abandoned goes to somebody else.
        repeat_gap: how many answers lie between a task and its repetition.
        clock: returns seconds since 1970.

    Raises:
        UserError: the database cannot be opened, or is not a store of this version or an earlier one.
    """

    def __init__(
        self,
        url: str = DEFAULT_STORE,
        patience: float = 10.0,
        returns_after: float = 1800.0,
        repeat_gap: int = 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.returns_after, self.repeat_gap, self.clock = returns_after, repeat_gap, clock
        self._database = Database(url, patience)
        self.name = self._database.name
        with self._database.changing() as connection:
            prepare(connection, f"feedback.store: {self.name}")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> FeedbackStore:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    # Tasks

    def add_tasks(self, new: Iterable[Task]) -> int:
        """Add tasks that do not exist yet, and return how many those are. A second call adds nothing."""
        added, iterator = 0, iter(new)
        while chunk := list(islice(iterator, _CHUNK)):
            with self.changing() as connection:
                added += insert_tasks(connection, chunk)
        return added

    def tasks(self) -> Iterator[Task]:
        """Yield all tasks in the order in which they were added, without holding all of them in memory."""
        with self._database.reading() as connection:
            yield from read_tasks(connection)

    def task(self, task: str) -> Task:
        """Return a task by its id.

        Raises:
            UserError: it does not exist.
        """
        with self._database.reading() as connection:
            return one_task(connection, self._task_number(connection, task))

    # Labelers

    def add_labeler(self, name: str, kind: str = "person", link: bool = True) -> str:
        """Add a labeler, or give a known one a new token, and return the token. The store keeps only its hash.

        Args:
            name: the labeler's name.
            kind: person, model or simulated.
            link: whether the token opens the page; otherwise the labeler enters by name, on the local machine.

        Raises:
            UserError: an invalid name or kind, or a name that is known with another kind.
        """
        try:
            labeler_name(name)
        except ValueError as error:
            raise UserError(f"labelers: {name!r}: {error}") from error
        if kind not in LABELER_KINDS:
            raise UserError(f"labelers: {name}: unknown kind {kind!r}; choose one of {', '.join(LABELER_KINDS)}")
        token = secrets.token_urlsafe(24)
        token_hash = _hash(token) if link else None
        with self.changing() as connection:
            known = connection.scalar(select(labelers.c.kind).where(labelers.c.name == name))
            if known is not None and known != kind:
                raise UserError(f"labelers: {name} is known as a {known}; choose another name for a {kind}")
            if known is not None:
                connection.execute(labelers.update().where(labelers.c.name == name).values(token_hash=token_hash))
            else:
                connection.execute(
                    labelers.insert().values(
                        name=name, kind=kind, token_hash=token_hash, created=self.clock(), judged=0, reached=0
                    )
                )
        return token

    def labelers(self) -> list[Labeler]:
        """Return all labelers, in the order in which they were added."""
        with self._database.reading() as connection:
            rows = connection.execute(select(labelers).order_by(labelers.c.number))
            return [Labeler(row.name, row.kind, row.judged) for row in rows]

    def labeler_of_token(self, token: str) -> Labeler | None:
        """Return the labeler with this token; None if there is none."""
        with self._database.reading() as connection:
            row = connection.execute(select(labelers).where(labelers.c.token_hash == _hash(token))).first()
        return None if row is None else Labeler(row.name, row.kind, row.judged)

    # Asking and answering

    def next_task(self, labeler: str) -> ShownTask | None:
        """Return the task that a labeler should answer now; None if nothing is left.

        Until it is answered, skipped or has been left for `returns_after` seconds, the labeler gets the same task
        again, and nobody else gets it unless its overlap asks for more labelers.
        """
        with self.changing(durable=False) as connection:  # the answer syncs both
            number = _labeler_number(connection, labeler)
            found = queue.next_assignment(connection, number, self.clock(), self.returns_after)
            if found is None:
                return None
            task = one_task(connection, found[0])
        return ShownTask(task.id, task.kind, task.prompt, tuple(response.text for response in task.responses))

    def record(
        self, labeler: str, task: str, answer: Answer, key: str | None = None, assigned_only: bool = False
    ) -> int:
        """Append a judgement and return its id. Once this has returned, a killed process or machine loses nothing.

        Args:
            labeler: who answers.
            task: the task's id.
            answer: the answer.
            key: key of the submitted form: a second call with it changes nothing and returns the same id.
            assigned_only: accept an answer only from a labeler who got the task from `next_task`.

        Raises:
            UserError: the answer does not fit the task, or the labeler has answered it already.
        """
        with self.changing() as connection:
            number, who = self._task_number(connection, task), _labeler_number(connection, labeler)
            if key is not None and (known := _known(connection, key, number, who)) is not None:
                return known
            shown = one_task(connection, number)
            answer.check(shown.kind, len(shown.responses))
            now = self.clock()
            assignment = queue.current_assignment(connection, number, who)
            state = None if assignment is None else assignment.state
            if state in ("done", "skipped") or (state is None and assigned_only):
                why = "was not given it" if state is None else "has answered it already; undo that first"
                raise UserError(f"task {task}: {labeler} {why}")
            repeat = assignment is not None and bool(assignment.repeat)
            opened = None if assignment is None else assignment.opened
            seconds = None if opened is None else max(0.0, now - opened)
            new = append(connection, number, who, answer, repeat, seconds, now, key or secrets.token_hex(16))
            if state != "open" and not repeat:
                queue.take_slot(connection, number)  # it was given back, or never taken
            self._settle(connection, shown, number, who, answer.verdict == "skip", repeat)
        return new

    def undo(self, labeler: str) -> str | None:
        """Undo the last answer of a labeler, who gets the task again, by appending a judgement that says so.

        If it was a skip, and as many others as the overlap asks for have got the task since, it stays with them.

        Returns:
            The task's id; None if the labeler has no answer left.
        """
        with self.changing() as connection:
            who = _labeler_number(connection, labeler)
            last = latest_of(connection, who)
            if last is None:
                return None
            now = self.clock()
            append(connection, last.task, who, None, last.repeat, None, now, secrets.token_hex(16), undoes=last.id)
            skipped = last.verdict == "skip" and not last.repeat
            if skipped and not queue.has_slot(connection, last.task):
                queue.forget(connection, last.task, who)
                return one_task(connection, last.task).id
            queue.set_state(
                connection, last.task, who, last.repeat, state="open", opened=now, expires=now + self.returns_after
            )
            if skipped:
                queue.take_slot(connection, last.task)
            if last.verdict != "skip":
                _count(connection, who, -1)
                if not last.repeat:
                    queue.forget_repeat(connection, last.task, who)
            return one_task(connection, last.task).id

    def judgements(self) -> Iterator[Judgement]:
        """Yield the valid judgements in order of time: neither undone judgements nor the undoing ones."""
        with self._database.reading() as connection:
            yield from effective_judgements(connection)

    def count_judgements(self) -> int:
        """Return how many judgements were ever appended, including undone and undoing ones."""
        with self._database.reading() as connection:
            return connection.scalar(select(func.count()).select_from(judgements)) or 0

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """Open a transaction for other queries; it changes nothing."""
        with self._database.reading() as connection:
            yield connection

    @contextlib.contextmanager
    def changing(self, durable: bool = True) -> Iterator[Connection]:
        """Allow one writer at a time: SQLite does so itself, elsewhere a row is locked. See `Database.changing`."""
        with self._database.changing(durable) as connection:
            if not self._database.is_sqlite:
                connection.execute(select(facts).where(facts.c.name == "version").with_for_update())
            yield connection

    def _settle(
        self, connection: Connection, task: Task, number: int, labeler: int, skipped: bool, repeat: bool
    ) -> None:
        """Apply the consequences of an answer: end the assignment, and possibly schedule a repetition."""
        queue.set_state(connection, number, labeler, repeat, state="skipped" if skipped else "done", expires=None)
        if skipped:
            if not repeat:
                queue.free_slot(connection, number)
            return
        judged = _count(connection, labeler, 1)
        if task.reask and not repeat:
            queue.set_state(connection, number, labeler, True, state="waiting", due=judged + self.repeat_gap)

    def _task_number(self, connection: Connection, task: str) -> int:
        number = connection.scalar(select(tasks.c.number).where(tasks.c.id == task))
        if number is None:
            raise UserError(f"task {task!r} is not in {self.name}")
        return number


def find_task(store: FeedbackStore, task: str) -> Task | None:
    """Return a task by its id; None if the store does not have it."""
    with store.reading() as connection:
        number = connection.scalar(select(tasks.c.number).where(tasks.c.id == task))
        return None if number is None else one_task(connection, number)


def answered(store: FeedbackStore, labeler: Labeler) -> Labeler:
    """Return a labeler with the current number of answers."""
    with store.reading() as connection:
        judged = connection.scalar(select(labelers.c.judged).where(labelers.c.name == labeler.name))
    return replace(labeler, judged=judged or 0)


def _labeler_number(connection: Connection, name: str) -> int:
    number = connection.scalar(select(labelers.c.number).where(labelers.c.name == name))
    if number is None:
        raise UserError(f"labeler {name!r} is not known; add_labeler adds one")
    return number


def _known(connection: Connection, key: str, task: int, labeler: int) -> int | None:
    """Return the judgement of a form that was sent before."""
    row = connection.execute(select(judgements).where(judgements.c.key == key)).first()
    if row is not None and (row.task, row.labeler) != (task, labeler):
        raise UserError("key: it belongs to another judgement; reload the page and answer again")
    return None if row is None else row.id


def _count(connection: Connection, labeler: int, change: int) -> int:
    here = labelers.c.number == labeler
    connection.execute(labelers.update().where(here).values(judged=labelers.c.judged + change))
    return connection.scalar(select(labelers.c.judged).where(here)) or 0


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
