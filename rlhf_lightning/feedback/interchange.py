"""Preferences to and from Argilla and Label Studio, as the JSON that both export.

Argilla (`dataset.records.to_json`): a record has `fields` and `responses`; a question's answer is a label such as
`response1`, or a ranking: names best first, or `{"value", "rank"}`. Records of Argilla 1 are read as well.

Label Studio: a task has `data` and `annotations`, whose `result` is of type `pairwise` (left or right), `ranker`, or
`choices` (`tie` or `neither`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import Answer, Judgement, Prompt, Response, Task, dense_ranks, task_id
from rlhf_lightning.feedback.store import FeedbackStore

Json = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """A task from elsewhere, and who answered what."""

    task: Task
    answers: tuple[tuple[str, Answer], ...]


def to_argilla(tasks: Iterable[Task], judgements: Iterable[Judgement], question: str = "preference") -> Iterator[Json]:
    """Yield one Argilla record per task, with its answers; skips are left out, as Argilla discards them."""
    answers = _by_task(judgements)
    for task in tasks:
        yield {
            "id": task.id,
            "fields": {"prompt": _plain(task.prompt), **_named(task)},
            "metadata": {},
            "suggestions": {},
            "responses": {
                question: [
                    {"value": _argilla_value(judgement.answer), "user_id": judgement.labeler}
                    for judgement in answers.get(task.id, ())
                    if judgement.answer.verdict != "skip"
                ]
            },
            "vectors": {},
            "status": "completed" if answers.get(task.id) else "pending",
        }


def from_argilla(records: Iterable[Json], question: str = "preference", prompt: str = "prompt") -> Iterator[Imported]:
    """Yield what Argilla records say.

    Args:
        records: as Argilla writes them.
        question: whose answers are read.
        prompt: the field that asks; the other fields are the responses, by their names.

    Raises:
        UserError: a record that cannot be read, by its number.
    """
    for number, record in enumerate(records, start=1):
        where = f"Argilla record {number}"
        fields = _mapping(record.get("fields"), f"{where}: fields")
        names = sorted(name for name in fields if name != prompt)
        task = _task(where, fields, prompt, names)
        answers = []
        for user, value in _argilla_answers(record.get("responses") or {}, question, where):
            answers.append((_labeler("argilla", user), _answer_of(value, names, where)))
        yield _imported(task, tuple(answers))


def to_label_studio(tasks: Iterable[Task], judgements: Iterable[Judgement]) -> Iterator[Json]:
    """Yield one Label Studio task per task, with its annotations."""
    answers = _by_task(judgements)
    for task in tasks:
        names = ",".join(_named(task))
        yield {
            "data": {"prompt": _plain(task.prompt), **_named(task), "task": task.id},
            "annotations": [
                {
                    "completed_by": {"email": judgement.labeler},
                    "was_cancelled": judgement.answer.verdict == "skip",
                    "lead_time": judgement.seconds,
                    "result": _label_studio_result(judgement.answer, names),
                }
                for judgement in answers.get(task.id, ())
            ],
        }


def from_label_studio(
    tasks: Iterable[Json], prompt: str = "prompt", responses: tuple[str, ...] = ("response1", "response2")
) -> Iterator[Imported]:
    """Yield what Label Studio tasks say; cancelled annotations are left out.

    Args:
        tasks: of an export as JSON.
        prompt: the key of `data` that asks.
        responses: the keys of the responses; of a pair first what was on the left.

    Raises:
        UserError: a task that cannot be read, by its number.
    """
    for number, each in enumerate(tasks, start=1):
        where = f"Label Studio task {number}"
        data = _mapping(each.get("data"), f"{where}: data")
        names = [name for name in responses if name in data] or list(responses)
        task = _task(where, data, prompt, names)
        answers = []
        for annotation in each.get("annotations") or ():
            if not annotation.get("was_cancelled"):
                value = _label_studio_value(annotation.get("result") or (), names, where)
                who = _labeler("label-studio", annotation.get("completed_by"))
                answers.append((who, _answer_of(value, names, where)))
        yield _imported(task, tuple(answers))


def import_into(store: FeedbackStore, imported: Iterable[Imported]) -> int:
    """Add tasks and answers from elsewhere to a store, and return how many answers are new."""
    known = {labeler.name for labeler in store.labelers()}
    had = {(judgement.labeler, judgement.task) for judgement in store.judgements()}
    new = 0
    for each in imported:
        store.add_tasks([each.task])
        for labeler, answer in each.answers:
            if labeler not in known:
                store.add_labeler(labeler)
                known.add(labeler)
            if (labeler, each.task.id) not in had:
                store.record(labeler, each.task.id, answer)
                had.add((labeler, each.task.id))
                new += 1
    return new


def _task(where: str, data: Mapping[str, Any], prompt: str, names: list[str]) -> Task:
    wrong = next((name for name in (prompt, *names) if not isinstance(data.get(name), str)), None)
    if wrong is not None:
        raise UserError(
            f"{where}: {wrong} must be a text, found {data.get(wrong)!r:.60}; name the fields that are there"
        )
    texts = [data[name] for name in names]
    kind = "pair" if len(names) == 2 else "ranking"
    return Task(task_id(kind, data[prompt], texts), kind, data[prompt], tuple(Response(text) for text in texts))


def _imported(task: Task, answers: tuple[tuple[str, Answer], ...]) -> Imported:
    """The overlap is that of the answers: nobody else is asked."""
    overlap = max(1, len({labeler for labeler, _ in answers}))
    return Imported(Task(task.id, task.kind, task.prompt, task.responses, overlap), answers)


def _answer_of(value: Any, names: list[str], where: str) -> Answer:
    """A name, `tie`, `neither`, names best first, or `{"value", "rank"}`."""
    if value in ("tie", "neither"):
        return Answer(str(value)) if len(names) == 2 else Answer("ranking", ranks=(1,) * len(names))
    if isinstance(value, str) and value in names and len(names) == 2:
        return Answer("choice", names.index(value))
    ranks: dict[str, float] = {}
    if isinstance(value, list):
        for place, item in enumerate(value, start=1):
            if isinstance(item, dict):
                ranks[str(item.get("value"))] = float(item.get("rank") or place)
            else:
                ranks[str(item)] = place
    if set(ranks) != set(names):
        raise UserError(f"{where}: {value!r:.80} is not an answer about {', '.join(names)}")
    dense = dense_ranks([ranks[name] for name in names])
    if len(names) > 2:
        return Answer("ranking", ranks=dense)
    return Answer("tie") if dense[0] == dense[1] else Answer("choice", int(dense[1] < dense[0]))


def _argilla_answers(responses: Any, question: str, where: str) -> Iterator[tuple[Any, Any]]:
    if isinstance(responses, dict):
        for each in responses.get(question) or ():
            yield each.get("user_id"), each.get("value")
        return
    for each in responses:  # Argilla 1
        values = each.get("values") or {}
        if each.get("status", "submitted") == "submitted" and question in values:
            yield each.get("user_id"), _mapping(values[question], f"{where}: {question}").get("value")


def _argilla_value(answer: Answer) -> Any:
    if answer.ranks is None:
        return f"response{answer.choice + 1}" if answer.choice is not None else answer.verdict
    order = sorted(range(len(answer.ranks)), key=lambda i: (answer.ranks or ())[i])
    if len(set(answer.ranks)) == len(answer.ranks):
        return [f"response{i + 1}" for i in order]
    return [{"value": f"response{i + 1}", "rank": answer.ranks[i]} for i in order]


def _label_studio_result(answer: Answer, names: str) -> list[Json]:
    place = {"from_name": "preference", "to_name": names}
    if answer.choice is not None:
        return [{**place, "type": "pairwise", "value": {"selected": ("left", "right")[answer.choice]}}]
    if answer.ranks is not None:
        order = [each["value"] if isinstance(each, dict) else each for each in _argilla_value(answer)]
        ranks = {f"response{i + 1}": rank for i, rank in enumerate(answer.ranks)}
        return [{**place, "type": "ranker", "value": {"ranker": {"rank": order}}, "meta": {"ranks": ranks}}]
    return [] if answer.verdict == "skip" else [{**place, "type": "choices", "value": {"choices": [answer.verdict]}}]


def _label_studio_value(result: Iterable[Any], names: list[str], where: str) -> Any:
    for each in result:
        value = each.get("value") or {}
        if each.get("type") == "pairwise" and value.get("selected") in ("left", "right"):
            return names[("left", "right").index(value["selected"])]
        if each.get("type") == "ranker":
            ranks = (each.get("meta") or {}).get("ranks")
            if ranks:
                return [{"value": name, "rank": rank} for name, rank in ranks.items()]
            return next(iter((value.get("ranker") or {}).values()), None)
        if each.get("type") == "choices" and (value.get("choices") or [None])[0] in ("tie", "neither", *names):
            return value["choices"][0]
    raise UserError(f"{where}: no result of type pairwise, ranker or choices; allowed choices are tie and neither")


def _by_task(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        if not judgement.repeat:
            found.setdefault(judgement.task, []).append(judgement)
    return found


def _named(task: Task) -> dict[str, str]:
    return {f"response{i}": response.text for i, response in enumerate(task.responses, start=1)}


def _plain(prompt: Prompt) -> str:
    """Messages as text: neither tool shows them otherwise."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, found {value!r:.60}")
    return value


def _labeler(tool: str, user: Any) -> str:
    name = user.get("email") or user.get("id") if isinstance(user, dict) else user
    return re.sub(r"[^\w.@+-]", "-", str(name))[:64] if name else f"{tool}-unknown"
