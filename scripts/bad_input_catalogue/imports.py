"""Files of other labelling tools that rlhf-agreement cannot import."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_catalogue.case import Case, writes

_FIELDS = {"prompt": "p", "response1": "a", "response2": "b"}
_TEXTS = {"prompt": "p", "response1": "a", "response2": "b"}
_LEFT = {"from_name": "preference", "type": "pairwise", "value": {"selected": "left"}}


def _given(user: Any, value: Any) -> dict[str, Any]:
    return {"user_id": user, "value": value}


def _answers(*answers: Any) -> dict[str, Any]:
    return {"fields": _FIELDS, "responses": {"preference": list(answers)}}


def _annotated(*results: Any, **more: Any) -> dict[str, Any]:
    return {"data": _TEXTS, "annotations": [{"completed_by": 1, "result": list(results), **more}]}


def _argilla(name: str, names: str, *records: Any, beside: Any = None, words: tuple[str, ...] = ()) -> Case:
    return Case(
        f"import: argilla: {name}",
        "agreement",
        ["import=d", "format=argilla", *words],
        names,
        _writing({"records.json": list(records), **({} if beside is None else {"labelers.json": beside})}),
    )


def _label_studio(name: str, names: str, *tasks: Any, words: tuple[str, ...] = ()) -> Case:
    prepare = _writing({"tasks.json": list(tasks)})
    words = ("import=d/tasks.json", "format=label_studio", *words)
    return Case(f"import: label studio: {name}", "agreement", list(words), names, prepare)


def _writing(files: dict[str, Any]) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            writes(f"d/{name}", json.dumps(content))(folder)

    return write


_FIRST = r"import: d/records\.json: Argilla record 1: "
_TASK = r"import: d/tasks\.json: Label Studio task 1: "
_ONE = _given("u1", "response1")

IMPORTS = [
    *(
        _argilla(
            f"responses are {json.dumps(odd)}", _FIRST + "(responses|preference)", {"fields": _FIELDS, "responses": odd}
        )
        for odd in ("abc", ["x"], 5, {"preference": "response1"}, {"preference": ["response1"]}, {"preference": _ONE})
    ),
    *(
        _argilla(f"the value {json.dumps(odd)}", _FIRST + ".*is not an answer about", _answers(_given("u1", odd)))
        for odd in (
            None,
            5,
            ["response1", "response1", "response2"],
            [{"value": "response1", "rank": float("nan")}, {"value": "response2", "rank": 2}],
            [{"value": "response1", "rank": "x"}, {"value": "response2", "rank": 2}],
            [{"value": "response1", "rank": 1}, {"value": "response2"}],
        )
    ),
    *(
        _argilla(f"the user {json.dumps(odd)}", _FIRST + "the user of an answer", _answers(_given(odd, "response1")))
        for odd in (None, {"x": 1}, ["u"], True, "", 1.5)
    ),
    *(
        _argilla(f"metadata {name} {json.dumps(odd)}", _FIRST + name, {**_answers(_ONE), "metadata": {name: odd}})
        for name, odd in (
            ("rlhf_strengths", "u1 response1 3"),
            ("rlhf_strengths", [3]),
            ("rlhf_strengths", ["u1 response1"]),
            ("rlhf_labeler_kinds", ["u1 robot"]),
            ("rlhf_labeler_kinds", {"u1": "model"}),
        )
    ),
    *(
        _argilla(
            f"the strength {odd}",
            _FIRST + "the strength of a choice is a number from 1 to 3",
            {**_answers(_ONE), "metadata": {"rlhf_strengths": [f"u1 response1 {odd}"]}},
        )
        for odd in ("0", "4", "-1", "much", "2.0")
    ),
    *(
        _label_studio(
            f"meta {json.dumps(odd)}", _TASK + names, _annotated({**_LEFT, "meta": {"labeler": "ana", **odd}})
        )
        for odd, names in (
            ({"kind": "robot"}, "meta: kind: a labeler is one of person, model, simulated"),
            ({"kind": None}, "meta: kind: a labeler is one of"),
            ({"strength": 3}, "meta: strength must be an object"),
            ({"strength": {"response1": 4}}, "the strength of a choice is a number from 1 to 3"),
            ({"strength": {"response1": True}}, "the strength of a choice is a number from 1 to 3"),
        )
    ),
    _argilla(
        "users with one name",
        _FIRST + "the users 'a b' and 'a/b'",
        _answers(_given("a b", "response1"), _given("a/b", "response2")),
    ),
    _argilla(
        "one user, two answers", _FIRST + "two answers of u1 contradict", _answers(_ONE, _given("u1", "response2"))
    ),
    _argilla(
        "two records, two answers",
        r"record 2: two answers of u1.*record 1",
        _answers(_ONE),
        _answers(_given("u1", "tie")),
    ),
    _argilla("an odd status", _FIRST + "status", _answers({**_ONE, "status": "perhaps"})),
    _argilla("no records", r"import: d/records\.json has no records"),
    _argilla("a surrogate", _FIRST + "response1: .*surrogate", {"fields": {**_FIELDS, "response1": "\ud800"}}),
    _argilla("an empty response", _FIRST + "response1 is empty", {"fields": {**_FIELDS, "response1": " "}}),
    _argilla(
        "the same but for white space",
        _FIRST + "two responses are the same",
        {"fields": {**_FIELDS, "response2": "a "}},
    ),
    _argilla("a task of Label Studio", _FIRST + ".*format=label_studio", _annotated(_LEFT)),
    _argilla(
        "a name with markup", r"import: d/labelers\.json: the name of u1", _answers(_ONE), beside={"u1": "<b>a b</b>"}
    ),
    _argilla(
        "a name that is too long", r"import: d/labelers\.json: the name of u1", _answers(_ONE), beside={"u1": "a" * 200}
    ),
    _argilla(
        "names that are a list", r"import: d/labelers\.json: the content must be an object", _answers(_ONE), beside=[1]
    ),
    _argilla(
        "names of which two are one",
        _FIRST + "the users 'u1' and 'u2'",
        _answers(_ONE, _given("u2", "tie")),
        beside={"u1": "x", "u2": "x"},
    ),
    _argilla(
        "the prompt as a response",
        r"names\.responses: 'prompt'",
        _answers(_ONE),
        words=("names.responses=[prompt,response1]",),
    ),
    *(
        _label_studio(f"annotations are {json.dumps(odd)}", _TASK + "annotations", {"data": _TEXTS, "annotations": odd})
        for odd in ("x", [3], {"a": 1})
    ),
    *(
        _label_studio(
            f"a result is {json.dumps(odd)}", _TASK + "result", {"data": _TEXTS, "annotations": [{"result": odd}]}
        )
        for odd in ("x", ["x"], {"a": 1})
    ),
    _label_studio("a value is a text", _TASK + "value", _annotated({**_LEFT, "value": "left"})),
    _label_studio("meta is a text", _TASK + "meta", _annotated({**_LEFT, "meta": "x"})),
    *(
        _label_studio(
            f"selected is {json.dumps(odd)}", _TASK + "selected", _annotated({**_LEFT, "value": {"selected": odd}})
        )
        for odd in (5, ["left"], None)
    ),
    _label_studio(
        "two choices",
        _TASK + ".*both 'tie' and 'neither'",
        _annotated({"from_name": "verdict", "type": "choices", "value": {"choices": ["tie", "neither"]}}),
    ),
    _label_studio("cancelled as a text", _TASK + "was_cancelled", _annotated(_LEFT, was_cancelled="false")),
    _label_studio("a list of labelers", _TASK + "the user", _annotated({**_LEFT, "meta": {"labeler": ["x"]}})),
    _label_studio("a record of Argilla", _TASK + ".*format=argilla", _answers(_ONE)),
    _label_studio("no tasks", r"import: d/tasks\.json has no records"),
    Case("import: a folder", "agreement", ["import=model", "format=argilla"], r"import: model is a folder"),
    Case(
        "import: a file of numbers",
        "agreement",
        ["import=i.json", "format=argilla"],
        r"import: i\.json",
        writes("i.json", "[1]"),
    ),
]
