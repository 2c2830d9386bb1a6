"""The store: who is asked what, what is acknowledged, what an undo does, who is blamed for errors."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text

from rlhf_lightning.errors import DiskError, UserError
from rlhf_lightning.feedback import schema
from rlhf_lightning.feedback.records import EVERYBODY, Answer, Response, Task, task_id
from rlhf_lightning.feedback.store import FeedbackStore

FIRST, SECOND, TIE, SKIP = Answer("choice", 0, 2), Answer("choice", 1, 1), Answer("tie"), Answer("skip")


@pytest.fixture
def two(store):
    for name in ("ana", "bo"):
        store.add_labeler(name)
    return store


def ids(store, labeler, count=50):
    """Return the tasks that a labeler gets, answering all of them."""
    given = []
    while len(given) < count and (task := store.next_task(labeler)) is not None:
        store.record(labeler, task.id, FIRST)
        given.append(task.id)
    return given


def test_what_goes_in_comes_out(two, pair):
    odd = "NUL \x00, half a character \ud800, ANSI \x1b[31m, 好"
    ranking = Task(
        task_id("ranking", [{"role": "user", "content": odd}], ["a", "b", odd]),
        "ranking",
        [{"role": "user", "content": odd}],
        (Response("a", "x", (0.5, 1.5)), Response(odd, "y"), Response("b")),
        overlap=2,
        reask=True,
        check=1,
    )
    assert two.add_tasks([pair("one"), ranking]) == 2
    assert list(two.tasks()) == [pair("one"), ranking]
    assert two.task(ranking.id) == ranking
    answer = Answer("ranking", ranks=(2, 1, 2), scores={"A.helpful": 4}, flags=("unsafe",), note=odd)
    two.record("ana", ranking.id, answer)
    (judgement,) = two.judgements()
    assert (judgement.task, judgement.labeler, judgement.answer) == (ranking.id, "ana", answer)


def test_tasks_are_added_once(store, pair):
    assert store.add_tasks([pair("one"), pair("two"), pair("one")]) == 2
    assert store.add_tasks([pair("two"), pair("three")]) == 1
    assert [task.prompt for task in store.tasks()] == ["one", "two", "three"]


def test_a_labeler_does_not_see_where_a_response_comes_from(two, pair):
    two.add_tasks([pair("one", check=1)])
    shown = two.next_task("ana")
    assert not {"old", "new"} & set(str(shown).replace("'", " ").split())
    assert not hasattr(shown, "check")


def test_two_labelers_get_the_same_task_only_where_overlap_asks_for_it(two, pair):
    two.add_tasks([pair(str(i)) for i in range(6)] + [pair("shared", overlap=2), pair("check", overlap=EVERYBODY)])
    ana, bo = [], []
    for _ in range(3):
        ana += ids(two, "ana", 1)
        bo += ids(two, "bo", 1)
    ana, bo = ana + ids(two, "ana"), bo + ids(two, "bo")
    assert set(ana) & set(bo) == {pair("shared").id, pair("check").id}
    assert set(ana) | set(bo) == {task.id for task in two.tasks()}
    assert len(ana) == len(set(ana))


def test_an_open_task_stays_with_its_labeler_until_it_is_left_too_long(two, pair, clock):
    two.add_tasks([pair("one")])
    assert two.next_task("ana").prompt == "one"
    clock.now += 599
    assert two.next_task("ana").prompt == "one"  # this restarts the time
    clock.now += 599
    assert two.next_task("bo") is None
    clock.now += 2
    assert two.next_task("bo").prompt == "one"
    assert two.next_task("ana") is None


def test_a_late_answer_counts_and_an_answer_given_twice_does_not(two, pair, clock):
    two.add_tasks([pair("one")])
    task = two.next_task("ana").id
    clock.now += 601
    assert two.next_task("bo").id == task
    two.record("ana", task, FIRST, assigned_only=True)
    two.record("bo", task, SECOND, assigned_only=True)
    with pytest.raises(UserError, match="bo has answered it already"):
        two.record("bo", task, FIRST)
    assert [judgement.labeler for judgement in two.judgements()] == ["ana", "bo"]
    assert two.next_task("ana") is None


def test_a_form_that_is_sent_twice_counts_once(two, pair):
    two.add_tasks([pair("one"), pair("two")])
    task = two.next_task("ana").id
    assert two.record("ana", task, FIRST, key="form") == two.record("ana", task, FIRST, key="form")
    assert two.count_judgements() == 1
    with pytest.raises(UserError, match="another judgement"):
        two.record("bo", pair("two").id, FIRST, key="form")


def test_a_task_that_was_not_given_is_refused_where_that_matters(two, pair):
    two.add_tasks([pair("one")])
    with pytest.raises(UserError, match="was not given it"):
        two.record("ana", pair("one").id, FIRST, assigned_only=True)
    two.record("ana", pair("one").id, FIRST)
    assert two.next_task("bo") is None


def test_a_skipped_task_goes_to_somebody_else(two, pair):
    two.add_tasks([pair("one"), pair("two")])
    skipped = two.next_task("ana").id
    two.record("ana", skipped, SKIP)
    assert ids(two, "bo") == [pair("two").id, skipped]
    assert two.next_task("ana") is None
    assert [labeler.judged for labeler in two.labelers()] == [0, 2]


def test_an_undo_is_a_judgement_and_brings_the_task_back(two, pair):
    two.add_tasks([pair("one"), pair("two")])
    first, second = ids(two, "ana")
    assert (two.undo("ana"), two.undo("ana")) == (second, first)
    assert two.undo("ana") is None
    assert list(two.judgements()) == []
    assert two.count_judgements() == 4
    assert two.next_task("bo") is None
    two.record("ana", second, TIE)
    two.record("ana", first, SECOND)
    assert [(j.task, j.answer.verdict) for j in two.judgements()] == [(second, "tie"), (first, "choice")]
    assert two.next_task("ana") is None
    assert two.labelers()[0].judged == 2


def test_an_undone_skip_takes_the_task_back(two, pair):
    two.add_tasks([pair("one")])
    two.record("ana", two.next_task("ana").id, SKIP)
    two.undo("ana")
    assert two.next_task("bo") is None
    assert two.next_task("ana").prompt == "one"


def test_an_undone_skip_leaves_a_task_with_those_who_have_it_since(two, pair):
    two.add_tasks([pair("one")])
    one = two.next_task("ana").id
    two.record("ana", one, SKIP)
    assert two.next_task("bo").id == one
    assert two.undo("ana") == one
    assert two.next_task("ana") is None
    with pytest.raises(UserError, match="was not given it"):
        two.record("ana", one, FIRST, assigned_only=True)
    two.record("bo", one, SKIP)
    assert two.next_task("ana").id == one


def test_a_task_is_asked_again_of_the_same_labeler_after_a_gap(two, pair):
    two.add_tasks([pair("again", reask=True), *(pair(str(i)) for i in range(4))])
    given = ids(two, "ana")
    assert given.count(pair("again").id) == 2
    assert given[0] == given[3] == pair("again").id
    assert [judgement.repeat for judgement in two.judgements()] == [False, False, False, True, False, False]
    assert two.next_task("bo") is None


def test_what_is_due_later_is_asked_at_the_end(two, pair):
    two.add_tasks([pair("again", reask=True)])
    assert ids(two, "ana") == [pair("again").id] * 2


def test_a_late_answer_to_a_repetition_counts_as_one(two, pair, clock):
    two.add_tasks([pair("again", reask=True), pair("other")])
    two.record("ana", two.next_task("ana").id, FIRST)
    two.record("ana", two.next_task("ana").id, FIRST)
    task = two.next_task("ana").id
    clock.now += 601
    assert two.next_task("bo") is None  # this takes the repetition back
    two.record("ana", task, SECOND, assigned_only=True)
    assert [judgement.repeat for judgement in two.judgements()] == [False, False, True]
    assert two.next_task("ana") is None


def test_an_undone_answer_is_not_asked_again(two, pair):
    two.add_tasks([pair("again", reask=True)])
    two.record("ana", two.next_task("ana").id, FIRST)
    two.undo("ana")
    two.record("ana", two.next_task("ana").id, SKIP)
    assert two.next_task("ana") is None


def test_the_time_taken_is_from_the_showing_to_the_answer(two, pair, clock):
    two.add_tasks([pair("one")])
    task = two.next_task("ana").id
    clock.now += 7.5
    two.next_task("ana")  # the page was loaded again
    clock.now += 1
    two.record("ana", task, FIRST)
    assert [judgement.seconds for judgement in two.judgements()] == [8.5]


def test_tokens_are_kept_as_hashes_and_a_new_one_ends_the_former(store, file):
    former = store.add_labeler("ana", "person")
    token = store.add_labeler("ana", "person")
    assert store.labeler_of_token(former) is None
    assert store.labeler_of_token(token).name == "ana"
    assert store.labeler_of_token("\ud800") is None
    content = b"".join(path.read_bytes() for path in Path(file).parent.iterdir())
    assert token.encode() not in content


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("", "person", "1 to 64"),
        ("a/b", "person", "1 to 64"),
        ("a", "robot", "simulated"),
        ("judge", "person", "known"),
    ],
)
def test_a_labeler_that_cannot_be_is_refused(store, name, kind, message):
    store.add_labeler("judge", "model")
    with pytest.raises(UserError, match=message):
        store.add_labeler(name, kind)


@pytest.mark.parametrize(
    "answer",
    [
        Answer("better"),
        Answer("choice"),
        Answer("tie", 0),
        Answer("choice", 2),
        Answer("choice", 0, 4),
        Answer("tie", strength=1),
        Answer("ranking", ranks=(1, 2, 3)),
        Answer("ranking", ranks=(2, 1)),
        Answer("ranking"),
        Answer("tie", note="x" * 2001),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(two, pair, answer):
    two.add_tasks([pair("one")])
    with pytest.raises(UserError):
        two.record("ana", pair("one").id, answer)
    assert two.count_judgements() == 0


@pytest.mark.parametrize("change", ["UPDATE judgements SET choice = 1", "DELETE FROM judgements"])
def test_a_judgement_cannot_be_changed(two, pair, change):
    two.add_tasks([pair("one")])
    two.record("ana", pair("one").id, FIRST)
    with pytest.raises(UserError, match="never changed"), two.changing() as connection:
        connection.execute(text(change))


@pytest.mark.usefixtures("file")
def test_what_is_acknowledged_is_synced(two, pair):
    """Each statement that appends a judgement is sent in a transaction of a connection that syncs."""
    synced = []

    def note(connection, cursor, statement, *_):
        if statement.startswith("INSERT INTO judgements"):
            synced.append((cursor.connection.execute("PRAGMA synchronous").fetchone()[0], connection.in_transaction()))

    two.add_tasks([pair("one"), pair("two")])
    event.listen(Engine, "before_cursor_execute", note)
    try:
        two.record("ana", two.next_task("ana").id, FIRST)
        two.record("ana", two.next_task("ana").id, SKIP)
        two.undo("ana")
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert synced == [(2, True)] * 3  # FULL
    with two.reading() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"


def test_two_stores_on_one_file_share_the_queue(two, url, pair):
    two.add_tasks([pair(str(i)) for i in range(40)])
    given, errors = {"ana": [], "bo": []}, []

    def label(name):
        try:
            with FeedbackStore(url) as mine:
                given[name] += ids(mine, name)
        except UserError as error:
            errors.append(error)

    threads = [threading.Thread(target=label, args=(name,)) for name in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sorted(given["ana"] + given["bo"]) == sorted(task.id for task in two.tasks())
    assert len(list(two.judgements())) == 40


def test_a_locked_file_is_one_clear_error(two, file, pair):
    two.add_tasks([pair("one")])
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"locked by another process for 0\.2 s"):
        two.record("ana", pair("one").id, FIRST)
    holder.execute("ROLLBACK")
    holder.close()
    two.record("ana", pair("one").id, FIRST)
    assert two.count_judgements() == 1


@pytest.mark.usefixtures("file")
def test_a_full_disk_loses_nothing_that_was_acknowledged(two, pair):
    two.add_tasks([pair(str(i)) for i in range(3)])
    two.record("ana", pair("0").id, FIRST)
    with two.reading() as connection:
        pages = connection.scalar(text("PRAGMA page_count"))
        connection.execute(text(f"PRAGMA max_page_count={pages}"))
    with pytest.raises(DiskError, match=r"feedback\.db cannot be written: no space left"):
        two.add_tasks([pair(f"{i} {'long ' * 2000}") for i in range(20)])
    with two.reading() as connection:
        connection.execute(text("PRAGMA max_page_count=1000000"))
    two.record("ana", pair("1").id, FIRST)
    assert two.count_judgements() == 2
    assert len(list(two.tasks())) == 3


def test_a_later_version_is_refused(store, url):
    with store.changing() as connection:
        connection.execute(text("UPDATE facts SET value = '99' WHERE name = 'version'"))
    with pytest.raises(UserError, match=r"later version .*store version 99.*upgrade"):
        FeedbackStore(url)


def test_an_earlier_version_is_brought_up_to_date(store, monkeypatch):
    now = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", now + 2)
    steps = {
        version: lambda connection, number=number: connection.execute(text(f"CREATE TABLE added_{number} (x INTEGER)"))
        for number, version in enumerate((now, now + 1), start=1)
    }
    with store.reading() as connection:
        schema.prepare(connection, "store", steps)
        names = set(schema.inspect(connection).get_table_names())
        assert {"added_1", "added_2"} <= names
        assert connection.scalar(text("SELECT value FROM facts WHERE name = 'version'")) == str(now + 2)
        schema.prepare(connection, "store", {})
        connection.execute(text(f"UPDATE facts SET value = '{now + 1}'"))
        with pytest.raises(UserError, match="cannot be upgraded"):
            schema.prepare(connection, "store", {})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "not the URL"),
        ("sqlite://", "names no file"),
        ("nosuchdatabase://host/x", "driver"),
        ("sqlite:///{folder}/text.db", "not a whole SQLite database"),
        ("sqlite:///{folder}/other.db", "tables of another program"),
        ("sqlite:///{folder}", "feedback.store"),
        ("sqlite:///{folder}/text.db/feedback.db", "choose another folder"),
    ],
)
def test_what_is_not_a_store_is_one_clear_error(url, message, tmp_path):
    (tmp_path / "text.db").write_text("this is not a database, it is a text" * 100)
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE tasks (x)")
    connection.close()
    with pytest.raises(UserError, match=message) as raised:
        FeedbackStore(url.format(folder=tmp_path), patience=0.2)
    assert "\n" not in str(raised.value)


def test_a_password_is_not_shown():
    with pytest.raises(UserError) as raised:
        FeedbackStore("nosuchdatabase://user:secret@host/x")
    assert "secret" not in str(raised.value)


def test_a_damaged_row_is_named(store, url, pair):
    store.add_tasks([pair("a")])
    with store.changing() as connection:
        connection.exec_driver_sql("UPDATE tasks SET prompt = '{bad'")
    with pytest.raises(UserError, match=r"feedback\.store: task \w+ cannot be read .*damaged"):
        list(store.tasks())
