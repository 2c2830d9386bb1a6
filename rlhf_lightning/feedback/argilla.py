"""Importing and exporting preferences of Argilla 2.

The export is what `rg.Dataset.from_disk` reads (SDK 2.8): `records.json`, a JSON list, and the settings next to it. The
import reads the records of `dataset.records.to_json` and the rows of `dataset.records.to_datasets`, both of Argilla 2,
and the records of Argilla 1 (`FeedbackDataset`), the only ones that say which of a ranking's responses are tied.

Argilla identifies users only by UUID: labelers are given one, and a file next to the records maps it to the name. What
Argilla does not know, kinds of labelers and strengths of choices, are lists of texts in the metadata of a record.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.foreign_values import (
    Users,
    as_labeler_kind,
    as_list,
    as_object,
    as_objects,
    with_strength,
)
from rlhf_lightning.feedback.interchange import (
    DEFAULT_NAMES,
    Imported,
    Json,
    Names,
    best_first,
    by_task,
    imported_task,
    read_answer,
    read_task,
    response_names,
)
from rlhf_lightning.feedback.records import Answer, Judgement, Task

_OURS = uuid.uuid5(uuid.NAMESPACE_URL, "https://rlhf-lightning.github.io/labelers")
_STATES = ("submitted", "draft", "discarded", "pending")  # of an answer
_KINDS, _STRENGTHS = "rlhf_labeler_kinds", "rlhf_strengths"  # "USER model", "USER response2 3"
_OWN = ("id", "status", "_server_id", _KINDS, _STRENGTHS)  # columns that a flat row has beside the fields


def user_id(labeler: str) -> str:
    """Return the UUID that stands for a labeler in an export."""
    return str(uuid.uuid5(_OURS, labeler))


def to_argilla(
    tasks: Iterable[Task],
    judgements: Iterable[Judgement],
    question: str = "preference",
    kinds: Mapping[str, str] | None = None,
) -> Iterator[Json]:
    """Yield one Argilla record per task, with its answers; skips are left out, as Argilla discards them.

    A ranking is a list of its responses, best first: Argilla's SDK has no ties there.

    Args:
        tasks: the tasks.
        judgements: the answers to them.
        question: name of the question.
        kinds: labeler -> kind; the others are people.
    """
    answers = by_task(judgements)
    for task in tasks:
        said = [each for each in answers.get(task.id, ()) if each.answer.verdict != "skip"]
        responses = [{"value": _value(each.answer), "user_id": user_id(each.labeler)} for each in said]
        yield {
            "id": task.id,
            "fields": {"prompt": task.prompt, **response_names(task)},
            "metadata": _metadata(said, kinds or {}),
            "suggestions": {},
            "responses": {question: responses} if responses else {},
            "vectors": {},
            "status": "completed" if responses else "pending",
            "_server_id": None,
        }


def argilla_settings(kind: str, count: int, chat: bool, overlap: int = 1, question: str = "preference") -> Json:
    """Return the settings of a dataset for such records, as `rg.Settings.to_json` writes them.

    Args:
        kind: kind of the tasks, `pair` or `ranking`.
        count: responses per task.
        chat: whether prompts are conversations.
        overlap: how many users answer a record before it is complete.
        question: name of the question.
    """
    names = [f"response{i}" for i in range(1, count + 1)]
    values = names if kind == "ranking" else [*names, "tie", "neither"]
    asks = "Rank the responses, the best first" if kind == "ranking" else "Which response is better?"
    options = [{"value": value, "text": value} for value in values]
    form: Json = {"type": "ranking"} if kind == "ranking" else {"type": "label_selection", "visible_options": None}
    fields: dict[str, str] = {"prompt": "chat" if chat else "text", **dict.fromkeys(names, "text")}
    return {
        "guidelines": None,
        "questions": [
            {
                "name": question,
                "title": asks,
                "description": None,
                "required": True,
                "settings": {**form, "options": options},
            }
        ],
        "fields": [
            {"name": name, "title": name, "required": True, "settings": {"type": field, "use_markdown": True}}
            for name, field in fields.items()
        ],
        "vectors": [],
        "metadata": [],
        "allow_extra_metadata": True,
        "distribution": {"strategy": "overlap", "min_submitted": overlap},
        "mapping": None,
    }


def from_argilla(
    records: Iterable[Json], names: Names = DEFAULT_NAMES, labelers: Mapping[str, str] | None = None
) -> Iterator[Imported]:
    """Yield the content of Argilla records; drafts and discarded answers are left out if the format marks them.

    Args:
        records: as Argilla writes them, or the rows of `to_datasets`.
        names: names of the question and the fields.
        labelers: UUID of a user -> the labeler's name; other users are named by their UUID.

    Raises:
        UserError: a record that cannot be read, by its number; two users with one name; or no record has the question,
            but some have others.
    """
    known, others, users = False, set[str](), Users(labelers)
    for number, record in enumerate(records, start=1):
        where = f"Argilla record {number}"
        if "data" in record and "fields" not in record:
            raise UserError(f"{where}: it has `data`, as a task of Label Studio; choose format=label_studio")
        flat = "fields" not in record and any(name.endswith(".responses") for name in record)
        fields = _flat_fields(record) if flat else as_object(record.get("fields"), f"{where}: fields")
        chosen = names.responses or tuple(sorted(_response_fields(fields, names.prompt, flat)))
        task = read_task(where, fields, names.prompt, chosen)
        asked, given = (_flat_answers if flat else _answers)(record, names.question, where)
        known, others = known or names.question in asked, others | asked
        metadata = record if flat else record.get("metadata")
        kinds, strengths = _noted(metadata if isinstance(metadata, dict) else {}, where)
        answers, kind_of = [], dict[str, str]()
        for user, value in given:
            labeler = users.labeler(user, where)
            answer = read_answer(value, chosen, where)
            answers.append((labeler, with_strength(answer, chosen, strengths.get(str(user), {}), where)))
            if (kind := kinds.get(str(user))) is not None:
                kind_of[labeler] = kind
        yield imported_task(task, tuple(answers), where, kind_of)
    if others and not known:
        raise UserError(
            f"names.question: no record has an answer to {names.question!r}; must be one of {', '.join(sorted(others))}"
        )


def _value(answer: Answer) -> Any:
    if answer.ranks is not None:
        return best_first(answer)
    return answer.verdict if answer.choice is None else f"response{answer.choice + 1}"


def _metadata(judgements: Sequence[Judgement], kinds: Mapping[str, str]) -> Json:
    """Return what Argilla keeps without knowing it; a strength says which response it belongs to."""
    kind_of = {user_id(each.labeler): kinds.get(each.labeler, "person") for each in judgements}
    noted = {
        _KINDS: [f"{user} {kind}" for user, kind in kind_of.items() if kind != "person"],
        _STRENGTHS: [
            f"{user_id(each.labeler)} {_value(each.answer)} {each.answer.strength}"
            for each in judgements
            if each.answer.strength is not None
        ],
    }
    return {name: values for name, values in noted.items() if values}


def _noted(metadata: Mapping[str, Any], where: str) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Return user -> kind, and user -> response -> strength, of a record that this package has written."""
    kinds = {user: as_labeler_kind(kind, f"{where}: {_KINDS}") for user, kind in _texts(metadata, _KINDS, 2, where)}
    strengths: dict[str, dict[str, Any]] = {}
    for user, response, strength in _texts(metadata, _STRENGTHS, 3, where):
        strengths.setdefault(user, {})[response] = int(strength) if strength.isdecimal() else strength
    return kinds, strengths


def _texts(metadata: Mapping[str, Any], name: str, count: int, where: str) -> Iterator[list[str]]:
    for each in as_list(metadata.get(name), f"{where}: {name}"):
        words = each.split() if isinstance(each, str) else []
        if len(words) != count:
            raise UserError(f"{where}: {name}: found {each!r:.80}; must be {count} words, the first of them a user")
        yield words


def _response_fields(fields: Mapping[str, Any], prompt: str, flat: bool) -> Sequence[str]:
    """Return all fields except the prompt; a flat row also has metadata, so there only those named like responses."""
    return [name for name in fields if name != prompt and (not flat or name.lower().startswith("response"))]


def _flat_fields(row: Json) -> Json:
    return {name: value for name, value in row.items() if name not in _OWN and "." not in name}


def _answers(record: Json, question: str, where: str) -> tuple[set[str], list[tuple[Any, Any]]]:
    """Return the questions that a record has, and (user, value) of each answer to one."""
    responses = record.get("responses")
    if isinstance(responses, dict):
        listed = as_objects(responses.get(question), f"{where}: {question}")
        return set(responses), [(each.get("user_id"), each.get("value")) for each in listed if _counts(each, where)]
    asked: set[str] = set()
    found = []
    for each in as_objects(responses, f"{where}: responses"):  # Argilla 1
        values = as_object(each.get("values") or {}, f"{where}: values")
        asked |= set(values)
        if _counts(each, where) and question in values:
            found.append((each.get("user_id"), as_object(values[question], f"{where}: {question}").get("value")))
    return asked, found


def _flat_answers(row: Json, question: str, where: str) -> tuple[set[str], list[tuple[Any, Any]]]:
    key = f"{question}.responses"
    values = as_list(row.get(key), f"{where}: {key}")
    users, states = (
        as_list(row.get(f"{key}.{part}"), f"{where}: {key}.{part}") or [None] * len(values)
        for part in ("users", "status")
    )
    if not len(values) == len(users) == len(states):
        sizes = f"{len(values)}, {len(users)} and {len(states)}"
        raise UserError(f"{where}: {key}, .users and .status have {sizes} entries; they must have equally many")
    asked = {name.removesuffix(".responses") for name in row if name.endswith(".responses")}
    kept = [
        (user, value)
        for user, value, state in zip(users, values, states, strict=True)
        if _counts({"status": state}, where) and value is not None
    ]
    return asked, kept


def _counts(answer: Mapping[str, Any], where: str) -> bool:
    """Return whether an answer was submitted; one that does not say so was."""
    state = answer.get("status")
    if state not in (None, *_STATES):
        raise UserError(f"{where}: status must be one of {', '.join(_STATES)}, found {state!r:.60}")
    return state in (None, _STATES[0])
