"""Round trips through the formats of other tools.

The formats of Argilla and Label Studio follow their sources: argilla 2.8 (`Record.to_dict`, `GenericIO.to_list`,
`Settings.serialize`) and Label Studio 1.23 (`Pairwise.js`, `Ranker.jsx`, the task format of its guide).
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.argilla import argilla_settings, from_argilla, to_argilla, user_id
from rlhf_lightning.feedback.exporting import export_project, export_rows, import_labels
from rlhf_lightning.feedback.interchange import Names, import_into
from rlhf_lightning.feedback.label_studio import from_label_studio, labeling_config, to_label_studio
from rlhf_lightning.feedback.records import Answer, Judgement, Response, Task, task_id


def task(prompt, *texts):
    kind = "pair" if len(texts) == 2 else "ranking"
    return Task(task_id(kind, prompt, texts), kind, prompt, tuple(map(Response, texts)), overlap=9)


PAIR = task("Why?", "Because.", "So.")
ORDER = task("Rank", *"abcd")
CHAT = [{"role": "user", "content": "Hi"}]
SAID = [
    (PAIR, "ana", Answer("choice", 1)),
    (PAIR, "bo@example.org", Answer("tie")),
    (PAIR, "cy", Answer("neither")),
    (ORDER, "ana", Answer("ranking", ranks=(2, 1, 4, 3))),
]
TIED = (ORDER, "cy", Answer("ranking", ranks=(1, 2, 1, 3)))


def judged(*answers):
    return [Judgement(i, task.id, who, answer, 5.0) for i, (task, who, answer) in enumerate(answers)]


def kinds_and_strengths(store):
    kinds = {labeler.name: labeler.kind for labeler in store.labelers()}
    return kinds, sorted((j.labeler, j.task, j.answer.choice, j.answer.strength or 0) for j in store.judgements())


def said(store):
    return sorted((j.labeler, j.task, j.answer.verdict, j.answer.choice, j.answer.ranks) for j in store.judgements())


def fill(store, *answers):
    for each, who, answer in answers:
        store.add_tasks([each])
        if who not in {labeler.name for labeler in store.labelers()}:
            store.add_labeler(who)
        store.record(who, each.id, answer)


@pytest.mark.parametrize(("form", "file"), [("argilla", ""), ("label_studio", "tasks.json")])
def test_a_project_there_and_back_is_the_same_store(form, file, store, url, tmp_path):
    answers = SAID if form == "argilla" else [*SAID, TIED]
    fill(store, *answers)
    counts = export_project(store, tmp_path / "out", form)
    assert counts == {str(tmp_path / "out/pair"): 1, str(tmp_path / "out/ranking_4"): 1}
    from rlhf_lightning.feedback.store import FeedbackStore

    with FeedbackStore(f"{url}2") as other:
        for folder in counts:
            assert import_labels(other, f"{folder}/{file}".rstrip("/"), form)[1] > 0
            assert import_labels(other, f"{folder}/{file}".rstrip("/"), form)[1] == 0
        assert said(other) == said(store)
        assert [each.id for each in other.tasks()] == [PAIR.id, ORDER.id]


@pytest.mark.parametrize(("form", "file"), [("argilla", "records.json"), ("label_studio", "tasks.json")])
def test_kinds_of_labelers_and_strengths_come_back(form, file, store, url, tmp_path):
    for name, kind in (("ana", "person"), ("judge", "model"), ("sim@example.org", "simulated")):
        store.add_labeler(name, kind)
    answers = {"ana": Answer("choice", 0, 3), "judge": Answer("choice", 1, 1), "sim@example.org": Answer("choice", 1)}
    fill(store, *((PAIR, who, answer) for who, answer in answers.items()), (ORDER, "judge", SAID[3][2]))
    from rlhf_lightning.feedback.store import FeedbackStore

    export_project(store, tmp_path, form)
    with FeedbackStore(f"{url}2") as other:
        for folder in ("pair", "ranking_4"):
            import_labels(other, tmp_path / folder / file, form)
        assert kinds_and_strengths(other) == kinds_and_strengths(store)
        more = task("More?", "Yes.", "No.")
        fill(store, (more, "judge", Answer("choice", 0, 2)))
        export_project(store, tmp_path, form)
        assert import_labels(other, tmp_path / "pair" / file, form) == (2, 1)


def test_a_flat_row_of_argilla_has_what_was_noted_in_columns():
    (record,) = to_argilla([PAIR], judged((PAIR, "judge", Answer("choice", 1, 2))), kinds={"judge": "model"})
    (given,) = record["responses"]["preference"]
    row = {**record["fields"], **record["metadata"], "preference.responses": [given["value"]]}
    row |= {"preference.responses.users": [given["user_id"]], "preference.responses.status": ["submitted"]}
    (imported,) = from_argilla([row], labelers={user_id("judge"): "judge"})
    assert (imported.answers, imported.kinds) == ((("judge", Answer("choice", 1, 2)),), {"judge": "model"})
    (imported,) = from_argilla([row | {"rlhf_strengths": None, "rlhf_labeler_kinds": None}])
    assert (imported.answers, imported.kinds) == (((user_id("judge"), Answer("choice", 1)),), {})


def test_a_choice_that_was_changed_does_not_keep_its_strength():
    said = judged((PAIR, "ana", Answer("choice", 1, 3)))
    (exported,) = to_label_studio([PAIR], said)
    exported["annotations"][0]["result"][0]["value"]["selected"] = "left"
    (imported,) = from_label_studio([exported])
    assert imported.answers == (("ana", Answer("choice", 0)),)
    (exported,) = to_argilla([PAIR], said)
    exported["responses"]["preference"][0]["value"] = "response1"
    (imported,) = from_argilla([exported], labelers={user_id("ana"): "ana"})
    assert imported.answers == (("ana", Answer("choice", 0)),)


def test_what_other_programs_note_is_not_read_as_ours():
    result = {**BOTH[0], "meta": {"text": ["sure"], "kind": "region", "strength": "high"}}
    (imported,) = from_label_studio([{"data": TWO, "annotations": [{"completed_by": 1, "result": [result]}]}])
    assert (imported.answers, imported.kinds) == ((("1", Answer("choice", 0)),), {})
    (imported,) = from_argilla([argilla(FIRST) | {"metadata": {"strength": 7, "kind": "x"}}])
    assert (imported.answers, imported.kinds) == ((("u1", Answer("choice", 0)),), {})


def test_a_conversation_stays_one(store, tmp_path):
    fill(store, (task(CHAT, "Hello!", "Go."), "ana", Answer("choice", 0)))
    for form, convert, back in (
        ("argilla", to_argilla, from_argilla),
        ("label_studio", to_label_studio, from_label_studio),
    ):
        export_project(store, tmp_path / form, form)
        (read,) = back(convert(store.tasks(), store.judgements()))
        assert read.task.prompt == CHAT
    settings = json.loads((tmp_path / "argilla/pair/.argilla/settings.json").read_text())
    assert settings["fields"][0]["settings"]["type"] == "chat"
    assert "<Paragraphs" in (tmp_path / "label_studio/pair/labeling_config.xml").read_text()
    store.add_tasks([PAIR])
    with pytest.raises(UserError, match="some prompts are texts and some conversations"):
        export_project(store, tmp_path, "argilla")


def test_users_of_argilla_are_uuids_and_rankings_are_names_alone():
    first, second = to_argilla([PAIR, ORDER], judged(SAID[0], TIED, (PAIR, "dee", Answer("skip"))))
    assert first["responses"] == {"preference": [{"value": "response2", "user_id": user_id("ana")}]}
    assert uuid.UUID(user_id("ana")) != uuid.UUID(user_id("bo"))
    assert second["responses"]["preference"][0]["value"] == ["response1", "response3", "response2", "response4"]
    assert set(first) == {
        *("id", "fields", "metadata", "suggestions", "responses", "vectors", "status", "_server_id")
    }  # fmt: skip
    question = argilla_settings("ranking", 3, chat=False)["questions"][0]
    assert question["settings"]["type"] == "ranking"
    assert [option["value"] for option in question["settings"]["options"]] == ["response1", "response2", "response3"]


def test_results_of_label_studio_name_their_tags():
    first, second = to_label_studio([PAIR, ORDER], judged(SAID[0], SAID[1], TIED))
    chosen, tie = (each["result"][0] for each in first["annotations"])
    assert chosen == {
        "from_name": "preference", "to_name": "preference", "type": "pairwise", "value": {"selected": "right"},
        "meta": {"labeler": "ana"},
    }  # fmt: skip
    assert tie["value"] == {"choices": ["tie"]}
    assert ["completed_by" in each for each in first["annotations"]] == [False, True]
    (ranked,) = second["annotations"][0]["result"]
    assert ranked["value"] == {"ranker": {"preference": ["response1", "response3", "response2", "response4"]}}
    assert second["data"]["items"][0] == {"id": "response1", "body": "a"}
    assert '<Ranker name="preference" toName="responses"/>' in labeling_config("ranking", 4, chat=False)
    assert 'toName="response1,response2"' in labeling_config("pair", 2, chat=False)


def test_a_ranking_that_was_changed_in_label_studio_does_not_keep_its_ties():
    (exported,) = to_label_studio([ORDER], judged(TIED))
    exported["annotations"][0]["result"][0]["value"]["ranker"]["preference"] = [f"response{i}" for i in (4, 3, 2, 1)]
    (imported,) = from_label_studio([exported])
    assert imported.answers == (("cy", Answer("ranking", ranks=(4, 3, 2, 1))),)


def test_an_answer_is_read_in_the_order_in_which_the_store_shows_the_task(store):
    turned = replace(PAIR, responses=PAIR.responses[::-1])
    store.add_tasks([turned])
    assert import_into(store, from_argilla(to_argilla([PAIR], judged(SAID[0])))) == 1
    (judgement,) = store.judgements()
    assert turned.responses[judgement.answer.choice].text == "So."


def test_a_record_of_argilla_1_is_read():
    record = {
        "fields": {"prompt": "Why?", "response1": "x", "response2": "y"},
        "responses": [
            {
                "user_id": "u1",
                "status": "submitted",
                "values": {
                    "preference": {"value": [{"value": "response1", "rank": 2}, {"value": "response2", "rank": 1}]}
                },
            },
            {"user_id": "u2", "status": "discarded", "values": {}},
        ],
    }
    (imported,) = from_argilla([record])
    assert imported.answers == (("u1", Answer("choice", 1)),)


def test_a_flat_row_of_argilla_2_is_read_without_what_was_not_submitted():
    row = {
        "id": "r1", "status": "pending", "_server_id": "s", "prompt": "Why?", "response1": "x", "response2": "y",
        "score": 3, "ranking.responses": ["response1", "response2", "response1"],
        "ranking.responses.users": ["u1", "u2", "u3"], "ranking.responses.status": ["submitted", "draft", "discarded"],
    }  # fmt: skip
    (imported,) = from_argilla([row], Names(question="ranking"), {"u1": "ana"})
    assert imported.answers == (("ana", Answer("choice", 0)),)
    with pytest.raises(UserError, match=r"names.question: no record has an answer to 'preference'.*ranking"):
        list(from_argilla([row]))


def test_an_annotation_of_label_studio_is_read():
    """As Label Studio's template for pairwise classification exports it."""
    exported = {
        "id": 1,
        "data": {"prompt": "Why?", "text1": "x", "text2": "y"},
        "annotations": [
            {
                "completed_by": 7,
                "was_cancelled": False,
                "result": [{"from_name": "pw", "to_name": "pw", "type": "pairwise", "value": {"selected": "right"}}],
            },
            {"completed_by": 8, "was_cancelled": True, "result": []},
            {"completed_by": 9, "was_cancelled": False, "result": []},
        ],
    }
    (imported,) = from_label_studio([exported], Names("pw", responses=("text1", "text2")))
    assert imported.answers == (("7", Answer("choice", 1)),)
    with pytest.raises(UserError, match=r"names.question: no annotation has a result of 'preference'.*pw"):
        list(from_label_studio([exported], Names(responses=("text1", "text2"))))


TWO = {"prompt": "a", "response1": "b", "response2": "c"}
BOTH = [
    {"from_name": "preference", "type": "pairwise", "value": {"selected": "left"}},
    {"from_name": "verdict", "type": "choices", "value": {"choices": ["tie"]}},
]


@pytest.mark.parametrize(
    ("read", "wrong", "message"),
    [
        (from_argilla, {}, "record 1: fields must be an object"),
        (from_argilla, {"fields": {"prompt": "a", "x": "b"}}, r"1 responses.*names\.responses"),
        (from_argilla, {"fields": {"prompt": "a", "x": "b", "y": 3}}, "y must be a text"),
        (from_argilla, {"fields": {"question": "a", "x": "b"}}, r"names\.prompt.*question, x"),
        (from_argilla, {"fields": {"prompt": "a", "x": "b", "y": "b"}}, "the same text"),
        (
            from_argilla,
            {
                "fields": {"prompt": "a", "x": "b", "y": "c"},
                "responses": {"preference": [{"value": ["x"], "user_id": "u"}]},
            },
            "is not an answer about x, y",
        ),
        (from_label_studio, {"data": {"prompt": "a"}}, "task 1: 0 responses"),
        (from_label_studio, {"prompt": "a", "response1": "b"}, "not as JSON-MIN"),
        (from_label_studio, {"data": TWO, "annotations": [{"result": BOTH}]}, "says both 'response1' and 'tie'"),
    ],
)
def test_what_cannot_be_read_is_named(read, wrong, message):
    with pytest.raises(UserError, match=message):
        list(read([wrong]))


def test_nothing_of_a_file_is_taken_where_a_record_cannot_be_read(store, tmp_path):
    good = next(to_argilla([PAIR], judged(SAID[0])))
    (tmp_path / "records.json").write_text(json.dumps([good, {"fields": 3}]))
    with pytest.raises(UserError, match="record 2"):
        import_labels(store, tmp_path / "records.json", "argilla")
    assert list(store.tasks()) == []
    with pytest.raises(UserError, match=r"import: .*nowhere.json does not exist"):
        import_labels(store, tmp_path / "nowhere.json", "argilla")


def test_labels_of_some_labelers_are_exported(store, tmp_path):
    fill(store, (PAIR, "ana", Answer("choice", 0)), (PAIR, "bo", Answer("choice", 1)), (ORDER, "bo", TIED[2]))
    assert export_rows(store, tmp_path, held_out=0, labelers=["ana"]) == {"preferences.jsonl": 1}
    assert json.loads((tmp_path / "preferences.jsonl").read_text())["chosen"] == "Because."
    with pytest.raises(UserError, match=r"labelers: 'cy' is not in .*allowed: ana, bo"):
        export_rows(store, tmp_path, labelers=["cy"])
    assert export_rows(store, tmp_path, "ranked", held_out=0) == {"ranked.jsonl": 2}


def test_a_store_that_decides_nothing_is_said(store, tmp_path):
    fill(store, (PAIR, "ana", Answer("tie")))
    with pytest.raises(UserError, match="export: no comparison"):
        export_rows(store, tmp_path)


RECORD = {"fields": {"prompt": "p", "response1": "a", "response2": "b"}}
FIRST = {"user_id": "u1", "value": "response1"}


def argilla(*answers):
    return {**RECORD, "responses": {"preference": list(answers)}}


def noting(*answers, **metadata):
    return {**argilla(*answers), "metadata": metadata}


@pytest.mark.parametrize(
    ("records", "labelers", "message"),
    [
        ([argilla(FIRST)], {"u1": "<b>a b</b>"}, r"labelers\.json: the name of u1"),
        ([argilla(FIRST)], {"u1": "a" * 200}, r"labelers\.json: the name of u1"),
        ([argilla(FIRST)], {"u1": "judge"}, r"record 1: judge is known as a model"),
        ([noting(FIRST, rlhf_labeler_kinds=["u1 simulated"])], {"u1": "judge"}, r"known as a model .* simulated here"),
        (
            [noting(FIRST, rlhf_labeler_kinds=[f"u1 {kind}"]) for kind in ("model", "simulated")],
            {},
            "record 2: u1 is a simulated here and a model elsewhere",
        ),
        ([argilla(FIRST, {**FIRST, "user_id": "b/c"}, {**FIRST, "user_id": "b c"})], {}, "'b/c' and 'b c' would both"),
        ([argilla(FIRST), argilla({**FIRST, "value": "tie"})], {}, "record 2: two answers of u1"),
    ],
)
def test_an_import_that_is_refused_leaves_the_store_as_it_was(records, labelers, message, store, tmp_path):
    store.add_labeler("judge", "model")
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "labelers.json").write_text(json.dumps(labelers))
    with pytest.raises(UserError, match=message):
        import_labels(store, tmp_path, "argilla")
    assert list(store.tasks()) == [] and [each.name for each in store.labelers()] == ["judge"]


def test_answers_that_differ_from_the_stores_are_counted_and_those_of_its_models_stay(store):
    lines = []
    store.add_labeler("judge", "model")
    fill(store, (PAIR, "judge", Answer("choice", 0)), (PAIR, "ana", Answer("choice", 1)))
    given = judged((PAIR, "judge", Answer("choice", 0)), (PAIR, "ana", Answer("tie")), (PAIR, "bo", Answer("tie")))
    assert import_into(store, from_label_studio(to_label_studio([PAIR], given)), lines.append) == 1
    assert [line[:22] for line in lines] == ["note: 1 answers differ"]
    assert [(who, verdict) for who, _, verdict, *_ in said(store)] == [
        *(("ana", "choice"), ("bo", "tie"), ("judge", "choice"))
    ]


@pytest.mark.parametrize(
    ("ranks", "answer"), [((0, 0), Answer("tie")), ((0, 2), Answer("choice", 0)), ((1.5, 0.5), Answer("choice", 1))]
)
def test_any_ranks_have_their_order(ranks, answer):
    value = [{"value": f"response{i}", "rank": rank} for i, rank in enumerate(ranks, start=1)]
    (imported,) = from_argilla([argilla({**FIRST, "value": value})])
    assert imported.answers == (("u1", answer),)


def test_a_user_with_the_number_0_is_somebody():
    result = [{"from_name": "preference", "type": "pairwise", "value": {"selected": "left"}}]
    (imported,) = from_label_studio([{"data": TWO, "annotations": [{"completed_by": 0, "result": result}]}])
    assert imported.answers == (("0", Answer("choice", 0)),)
