"""The tables of the store, their version, and the migrations between versions.

Text from outside is stored as ASCII JSON: any string, even with lone surrogates or NUL, comes back unchanged from every
database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import (
    DDL,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    event,
    func,
    inspect,
    select,
)

from rlhf_lightning.errors import UserError, reason

VERSION = 2
_LOCK = 0x52_4C_48_46  # PostgreSQL's advisory lock while a store is created or migrated

metadata = MetaData()

facts = Table(
    "facts",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(32), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("reask", Boolean, nullable=False),
    Column("check_answer", Integer),
    Column("slots", Integer, nullable=False),  # how many labelers it still needs
    Column("open", Boolean, nullable=False),  # slots > 0, for the index
    Column("place", Integer, nullable=False, unique=True),  # in the queue; a task that comes back goes to its end
    Index("tasks_queue", "open", "place"),
)

responses = Table(
    "responses",
    metadata,
    Column("task", ForeignKey("tasks.number"), primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),  # in the order shown
    Column("text", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("scores", Text, nullable=False),
)

labelers = Table(
    "labelers",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("kind", String(16), nullable=False),
    Column("token_hash", String(64), unique=True),
    Column("created", Float, nullable=False),
    Column("judged", Integer, nullable=False),
    Column("reached", Integer, nullable=False),  # the position in the queue up to which tasks were offered
)

assignments = Table(
    "assignments",
    metadata,
    Column("task", ForeignKey("tasks.number"), primary_key=True),
    Column("labeler", ForeignKey("labelers.number"), primary_key=True),
    Column("repeat", Boolean, primary_key=True),
    Column("state", String(8), nullable=False),  # open | done | skipped | expired | waiting (to be asked again)
    Column("opened", Float),
    Column("expires", Float),
    Column("due", Integer),  # repeat once the labeler has judged this many
    Index("assignments_of_labeler", "labeler", "state", "due"),
    Index("assignments_expiry", "state", "expires"),
)

judgements = Table(
    "judgements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),  # of the form: sent twice, it counts once
    Column("task", ForeignKey("tasks.number"), nullable=False),
    Column("labeler", ForeignKey("labelers.number"), nullable=False),
    Column("repeat", Boolean, nullable=False),
    Column("verdict", String(16), nullable=False),  # or undo
    Column("undoes", ForeignKey("judgements.id"), unique=True),
    Column("choice", Integer),
    Column("strength", Integer),
    Column("ranks", Text),
    Column("more", Text),  # scores, flags and note
    Column("seconds", Float),
    Column("created", Float, nullable=False),
    Index("judgements_of_labeler", "labeler", "id"),
    Index("judgements_of_task", "task", "labeler"),
)

samples = Table(
    "samples",
    metadata,
    Column("key", String(32), primary_key=True),  # of the policy, the prompt and the sampling settings
    Column("responses", Text, nullable=False),
)

_REFUSAL = "judgements are appended, never changed"
_ON_SQLITE = [
    DDL(
        f"CREATE TRIGGER judgements_no_{change.lower()} BEFORE {change} ON judgements "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    )
    for change in ("UPDATE", "DELETE")
]
_ON_POSTGRESQL = [
    DDL(
        "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
    ),
    *(
        DDL(
            f"CREATE TRIGGER judgements_no_{name} BEFORE {change} ON judgements "
            f"FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
        )
        for name, change in (("change", "UPDATE OR DELETE"), ("truncate", "TRUNCATE"))
    ),
]
for _dialect, _triggers in (("sqlite", _ON_SQLITE), ("postgresql", _ON_POSTGRESQL)):
    for _trigger in _triggers:
        event.listen(judgements, "after_create", _trigger.execute_if(dialect=_dialect))


def _add_samples(connection: Connection) -> None:
    """Migrate from version 1: keep policies' responses, and let PostgreSQL refuse changes of judgements too."""
    samples.create(connection)
    if connection.dialect.name == "postgresql":
        for trigger in _ON_POSTGRESQL:
            connection.execute(trigger)


def damaged(what: str, error: Exception) -> UserError:
    """Return the line for a row whose content is not what this program has written."""
    return UserError(f"feedback.store: {what} cannot be read ({reason(error)}); the store is damaged: restore a copy")


Migration = Callable[[Connection], None]
MIGRATIONS: dict[int, Migration] = {1: _add_samples}  # from this version to the next


def prepare(connection: Connection, name: str, migrations: Mapping[int, Migration] = MIGRATIONS) -> None:
    """Create the tables of a new store, and migrate those of an earlier version.

    Args:
        connection: in a transaction that may write.
        name: names the store in messages.
        migrations: earlier version -> the migration to the next one.

    Raises:
        UserError: the store has a later version, or the database is something else.
    """
    if connection.dialect.name == "postgresql":  # SQLite allows one writer at a time anyway
        connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
    there = set(inspect(connection).get_table_names())
    if facts.name not in there:
        if there & set(metadata.tables):
            raise UserError(f"{name} has tables of another program ({', '.join(sorted(there))}); choose another store")
        metadata.create_all(connection)
        connection.execute(facts.insert().values(name="version", value=str(VERSION)))
        return
    found = connection.scalar(select(facts.c.value).where(facts.c.name == "version"))
    if found is None or not found.isdigit():
        raise UserError(f"{name} is not a feedback store: it has no version; choose another store")
    version = int(found)
    if version > VERSION:
        raise UserError(
            f"{name} was written by a later version of rlhf-lightning (store version {version}, this one reads up to "
            f"{VERSION}); upgrade, or choose another store"
        )
    while version < VERSION:
        if version not in migrations:
            raise UserError(f"{name} is of store version {version}, which cannot be upgraded; export it first")
        migrations[version](connection)
        version += 1
        connection.execute(facts.update().where(facts.c.name == "version").values(value=str(version)))
