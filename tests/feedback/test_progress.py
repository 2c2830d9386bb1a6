"""What the owner's page counts, and whom a round with people waits for."""

from __future__ import annotations

import re

import pytest

from rlhf_lightning.errors import WaitingError
from rlhf_lightning.feedback.progress import progress
from rlhf_lightning.feedback.records import Answer
from rlhf_lightning.feedback.rounds import wait_for_people

TIE, SKIP = Answer("tie"), Answer("skip")


@pytest.fixture
def two(store):
    for name in ("ana", "bo"):
        store.add_labeler(name, link=False)
    return store


def counts(store):
    found = progress(store)
    assert found.finished + found.waiting == found.tasks
    return found.finished, found.wanted, found.opened, found.pages


def work(store, name, answer=TIE, times=50):
    """Answer what a labeler is given, until nothing is left."""
    for _ in range(times):
        if (task := store.next_task(name)) is None:
            return
        store.record(name, task.id, answer, assigned_only=True)


def test_a_task_that_is_open_at_some_of_its_labelers_counts_once(two, pair):
    two.add_tasks([pair(str(i), overlap=2) for i in range(5)])
    assert counts(two) == (0, 10, 0, 0)
    two.next_task("ana")
    assert counts(two) == (0, 9, 1, 1)
    for name in ("ana", "bo"):
        work(two, name, times=4)
        two.next_task(name)
    assert counts(two) == (4, 0, 2, 2)
    two.record("bo", two.next_task("bo").id, TIE)
    assert counts(two) == (4, 0, 1, 1)


def test_a_task_that_was_left_open_still_waits(two, pair, clock):
    two.add_tasks([pair("one")])
    two.next_task("ana")
    clock.now += 10_000
    assert counts(two) == (0, 1, 0, 0)


def test_an_open_repetition_is_a_page_and_not_a_missing_answer(two, pair):
    two.add_tasks([pair("one", reask=True)])
    work(two, "ana", times=1)
    two.next_task("ana")
    assert counts(two) == (1, 0, 0, 1)


def test_the_last_hour_has_answers_that_hold(two, pair, clock):
    two.add_tasks([pair(str(i)) for i in range(4)])
    work(two, "bo", times=1)
    clock.now += 4000
    two.undo("bo")  # of an answer before the last hour
    work(two, "bo", times=1)
    work(two, "bo", SKIP, times=1)
    two.undo("bo")
    assert [each.last_hour for each in progress(two).labelers] == [0, 1]
    assert progress(two).hours_left == 3
    work(two, "bo", times=1)
    two.undo("bo")
    assert progress(two).last_hour == 1


@pytest.mark.parametrize(
    ("overlap", "before", "labelers", "expected"),
    [
        (3, {}, ["ana", "bo"], r"wait for 8 answers of ana \(0 so far\), bo \(0 so far\); .*; 4 more can come from "
         r"none of ana, bo, .*labelers=\[ana,bo,NAME\]\) or lower .*share to 0\.666$"),
        (3, {"ana": TIE}, ["ana", "bo"], r"wait for 4 answers of bo \(0 so far\); .*; 4 more can come from none of "),
        (2, {"ana": TIE}, ["ana"], r"wait for 4 answers that can come from none of ana, .*share to 0\.5$"),
        (1, {"ana": SKIP}, None, r"wait for 4 answers that can come from none of ana, .*\[ana,NAME\]\)$"),
        (1, {"ana": SKIP}, ["bo"], r"wait for 4 answers of bo \(0 so far\); rlhf-label \S+ serves them$"),
        (2, {}, ["ana", "bo"], r"wait for 8 answers of ana \(0 so far\), bo \(0 so far\); rlhf-label \S+ serves them$"),
        (2, {}, None, r"wait for 8 answers of labelers, of whom there are none yet; rlhf-label \S+ serves them$"),
    ],
)  # fmt: skip
def test_a_round_waits_for_those_who_can_still_answer(store, url, pair, tmp_path, overlap, before, labelers, expected):
    store.add_tasks([pair(str(i), overlap=overlap) for i in range(4)])
    for name, answer in before.items():
        store.add_labeler(name, link=False)
        work(store, name, answer)
    with pytest.raises(WaitingError, match=expected):
        wait_for_people(tmp_path, url, labelers)


def test_what_is_open_on_a_page_is_waited_for_and_the_share_that_is_named_is_enough(url, two, pair, clock, tmp_path):
    two.add_tasks([pair(str(i)) for i in range(7)] + [pair(f"all {i}", overlap=3) for i in range(3)])
    clock.now = 4e9  # the stage has a store with a clock of its own
    two.next_task("bo")
    work(two, "ana")
    with pytest.raises(WaitingError, match=r"wait for 4 answers of bo \(0 so far\); .*; 3 more can come from none"):
        wait_for_people(tmp_path, url)
    work(two, "bo")
    with pytest.raises(WaitingError, match=r"^3 of 10 tasks in \S+ wait for 3 answers that") as raised:
        wait_for_people(tmp_path, url)
    share = re.search(r"share to (\S+)$", str(raised.value))
    assert share is not None
    assert wait_for_people(tmp_path, url, share=float(share[1])) == {"answers": 13}
