"""Queries that a labeler waits for use only indexes, however large the store is."""

from __future__ import annotations

from sqlalchemy import Engine, event

from rlhf_lightning.feedback.records import Answer


def test_no_query_between_two_tasks_reads_a_whole_table(store, pair, clock):
    """By SQLite's own plan of each statement that asking, answering, skipping and undoing send."""
    store.add_labeler("ana")
    store.add_labeler("bo")
    store.add_tasks([pair(str(i), reask=i % 2 == 0, overlap=1 + i % 2) for i in range(30)])
    sent = {}

    def note(statement, parameters, **_):
        if statement.startswith(("SELECT", "UPDATE", "INSERT", "DELETE")):
            sent[statement] = parameters

    event.listen(Engine, "before_cursor_execute", note, named=True)
    try:
        for i in range(12):
            for name in ("ana", "bo"):
                store.record(name, store.next_task(name).id, Answer("skip") if i % 5 == 4 else Answer("tie"))
            if i % 4 == 3:
                store.undo("ana")
            store.next_task("bo")
            clock.now += 400
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert len(sent) > 15
    with store.reading() as connection:
        for statement, parameters in sent.items():
            for *_, detail in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters):
                assert not detail.startswith("SCAN"), f"{detail}: {statement}"
                few = "ORDER BY assignments.opened" in statement or "responses" in statement  # of one labeler, one task
                assert few or "TEMP B-TREE" not in detail, f"{detail}: {statement}"
