"""Exported rows are accepted by the package's own readers."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.data import read_rows, row_format
from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import FeedbackStore, export_judgements
from rlhf_lightning.feedback.export import (
    is_held_out,
    preference_rows,
    ranked_rows,
    unpaired_rows,
    write_splits,
)
from rlhf_lightning.feedback.records import Answer, Judgement, Response, Task

PAIR = Task("pair", "pair", "Why?", (Response("Because.", "a"), Response("So.", "b")), overlap=3)
CHAT = Task("chat", "pair", [{"role": "user", "content": "Hi"}], (Response("Hello!"), Response("Go.")))
ORDER = Task("order", "ranking", "Rank", tuple(Response(text) for text in "abcd"))
TASKS = [PAIR, CHAT, ORDER]


def judgements(*answers):
    return [Judgement(i, task.id, who, answer, 5.0) for i, (task, who, answer) in enumerate(answers)]


JUDGED = judgements(
    (PAIR, "ana", Answer("choice", 0, 3)),
    (PAIR, "bo", Answer("choice", 0, 1)),
    (PAIR, "cy", Answer("choice", 1, 1)),
    (CHAT, "ana", Answer("choice", 1)),
    (ORDER, "ana", Answer("ranking", ranks=(2, 1, 4, 3))),
)


def test_a_preference_row_has_its_margin_agreement_and_task():
    rows = list(preference_rows(TASKS, JUDGED))
    assert rows[0] == {
        "prompt": "Why?", "chosen": "Because.", "rejected": "So.", "margin": 1.0, "agreement": 0.6667, "task": "pair"
    }  # fmt: skip
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "Go."}]
    assert [(row["chosen"], row["rejected"], row["margin"]) for row in rows[2:]] == [
        ("b", "a", 1), ("a", "c", 2), ("a", "d", 1), ("b", "c", 3), ("b", "d", 2), ("d", "c", 1)
    ]  # fmt: skip
    assert {row_format(row) for row in rows} == {"preference"}


def test_ties_are_not_exported_as_preferences():
    even = judgements(
        (PAIR, "ana", Answer("choice", 0)), (PAIR, "bo", Answer("choice", 1)), (CHAT, "bo", Answer("tie"))
    )
    assert list(preference_rows(TASKS, even)) == []
    assert list(unpaired_rows(TASKS, even)) == []


@pytest.mark.parametrize("method", ["majority", "dawid_skene", "bradley_terry"])
@pytest.mark.parametrize(("verdict", "unpaired"), [("tie", []), ("neither", [False, False])])
def test_one_choice_against_two_ties_is_no_preference_in_any_form(method, verdict, unpaired):
    said = judgements((PAIR, "ana", Answer(verdict)), (PAIR, "bo", Answer(verdict)), (PAIR, "cy", Answer("choice", 0)))
    assert list(preference_rows(TASKS, said, method)) == []
    assert [row["ranks"] for row in ranked_rows(TASKS, said, method)] == [[1, 1]]
    assert [row["label"] for row in unpaired_rows(TASKS, said, method)] == unpaired


def test_ranked_rows_are_best_first_with_ranks_where_tied():
    rows = list(ranked_rows(TASKS, JUDGED))
    assert rows[2] == {"prompt": "Rank", "responses": ["b", "a", "d", "c"], "task": "order"}
    tied = judgements((ORDER, "ana", Answer("ranking", ranks=(1, 2, 1, 3))))
    (row,) = ranked_rows(TASKS, tied)
    assert row["responses"] == ["a", "c", "b", "d"]
    assert row["ranks"] == [1, 1, 2, 3]
    assert row_format(row) == "ranked"


def test_unpaired_rows_are_what_always_wins_or_always_loses():
    rows = [(row["completion"], row["label"]) for row in unpaired_rows(TASKS, JUDGED) if isinstance(row["prompt"], str)]
    assert rows == [("Because.", True), ("So.", False), ("b", True), ("c", False)]
    bad = judgements(
        (PAIR, "ana", Answer("neither")), (PAIR, "bo", Answer("neither")), (PAIR, "cy", Answer("choice", 0))
    )
    assert [row["label"] for row in unpaired_rows(TASKS, bad)] == [False, False]


def pair(prompt, first, second):
    return Task(f"{prompt}{first}{second}", "pair", prompt, (Response(first), Response(second)))


@pytest.mark.parametrize("prompt", ["p", [{"role": "user", "content": "p"}]])
def test_unpaired_rows_of_several_tasks_do_not_contradict_each_other(prompt):
    """`b` beats `c` and loses to `a`; `d` is bad beside `e`, which wins elsewhere; another prompt is another matter."""
    tasks = [pair(prompt, *"ab"), pair(prompt, *"bc"), pair(prompt, *"ac"), pair(prompt, *"de"), pair(prompt, *"ec")]
    tasks.append(pair("other", *"ba"))
    answers = 3 * [Answer("choice", 0)] + [Answer("neither")] + 2 * [Answer("choice", 0)]
    said = judgements(*((task, "ana", answer) for task, answer in zip(tasks, answers, strict=True)))
    rows = list(unpaired_rows(iter(tasks), iter(said)))
    text = [row["completion"] if isinstance(prompt, str) else row["completion"][0]["content"] for row in rows[:-2]]
    assert list(zip(text, (row["label"] for row in rows), strict=False)) == [("a", True), ("c", False), ("d", False)]
    assert [row["task"] for row in rows[:3]] == [tasks[0].id, tasks[1].id, tasks[3].id]
    assert [(row["completion"], row["label"]) for row in rows[-2:]] == [("b", True), ("a", False)]


def test_splits_share_no_prompt_and_are_read_back(tmp_path):
    rows = [{"prompt": f"p{i // 2}", "chosen": f"good {i}\ud800", "rejected": "bad"} for i in range(400)]
    counts = write_splits(iter(rows), tmp_path / "new", held_out=0.25)
    read = {}
    for split, name in (("train", "preferences.jsonl"), ("test", "preferences_test.jsonl")):
        read[split] = [json.loads(line) for line in (tmp_path / "new" / name).read_text().splitlines()]
        assert len(read[split]) == counts[split]
        assert len(read_rows(tmp_path / "new" / name)) == counts[split]
    assert not {row["prompt"] for row in read["train"]} & {row["prompt"] for row in read["test"]}
    written = [str(row) for half in read.values() for row in half]
    assert sorted(written) == sorted(str(row).replace("\\ud800", "?") for row in rows)
    assert abs(counts["test"] - 100) < 5 * 2 * (200 * 0.25 * 0.75) ** 0.5
    later = [is_held_out(row["prompt"], 0.25) for row in rows]
    held_out = {row["prompt"] for row in read["test"]}
    assert later == [row["prompt"] in held_out for row in rows]
    with pytest.raises(UserError, match="held_out"):
        write_splits(rows, tmp_path, held_out=1.0)


def test_without_held_out_rows_no_test_file_is_left_to_learn_from(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(20)]
    assert write_splits(rows, tmp_path, held_out=0.5)["test"] > 0
    assert write_splits(rows, tmp_path, held_out=0) == {"train": 20, "test": 0}
    assert [file.name for file in tmp_path.iterdir()] == ["preferences.jsonl"]


def test_an_export_that_would_hold_out_everything_is_refused(tmp_path):
    rows = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(3)]
    with pytest.raises(UserError, match="held_out: all 3 rows"):
        write_splits(rows, tmp_path, held_out=0.999999)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_export_leaves_the_former_one(tmp_path):
    write_splits([{"prompt": "a", "chosen": "b", "rejected": "c"}], tmp_path, held_out=0)
    former = (tmp_path / "preferences.jsonl").read_text()

    def broken():
        yield {"prompt": "x"}
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_splits(broken(), tmp_path, held_out=0)
    assert (tmp_path / "preferences.jsonl").read_text() == former


def test_a_round_exports_rankings_as_one_row_per_task(tmp_path):
    url = f"sqlite:///{tmp_path}/feedback.db"
    with FeedbackStore(url) as store:
        store.add_labeler("ana")
        store.add_tasks([ORDER])
        shown = store.next_task("ana")
        ranks = tuple(1 + "abcd".index(text) for text in shown.texts)
        store.record("ana", ORDER.id, Answer("ranking", ranks=ranks))
    assert export_judgements(tmp_path / "pairs", url)["rows"] == 6
    assert export_judgements(tmp_path / "rankings", url, rankings=True)["rows"] == 1
    (row,) = read_rows(tmp_path / "rankings/preferences.jsonl")
    assert row["responses"] == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match=r"export\.margin: true, but rankings have no margin"):
        export_judgements(tmp_path / "both", url, rankings=True, margin=True)
