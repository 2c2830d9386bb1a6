"""What the formats of other labelling tools have in common, and how imported data gets into a store."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import Answer, Judgement, Prompt, Response, Task, dense_ranks, task_id
from rlhf_lightning.feedback.store import FeedbackStore

Json = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """A task from another tool, and who answered what."""

    task: Task
    answers: tuple[tuple[str, Answer], ...]


@dataclass(frozen=True)
class Names:
    """What things are called in the project of another tool.

    Args:
        question: the question whose answers are read.
        prompt: the field that asks.
        responses: the fields of the responses, in the order shown; None: all that exist.
    """

    question: str = "preference"
    prompt: str = "prompt"
    responses: tuple[str, ...] | None = None


DEFAULT_NAMES = Names()


def import_into(store: FeedbackStore, imported: Iterable[Imported]) -> int:
    """Add tasks and answers from another tool to a store, and return the number of new answers."""
    known = {labeler.name for labeler in store.labelers()}
    had = {(judgement.labeler, judgement.task) for judgement in store.judgements()}
    read, new = list(imported), 0
    store.add_tasks(each.task for each in read)
    for each in read:
        for labeler, answer in each.answers:
            if labeler not in known:
                store.add_labeler(labeler)
                known.add(labeler)
            if (labeler, each.task.id) not in had:
                store.record(labeler, each.task.id, _as_shown(store, each.task, answer))
                had.add((labeler, each.task.id))
                new += 1
    return new


def _as_shown(store: FeedbackStore, task: Task, answer: Answer) -> Answer:
    """Return an answer in the order of the store's own task, which may show the same responses in another order."""
    texts = [response.text for response in task.responses]
    ours = [response.text for response in store.task(task.id).responses]
    if ours == texts:
        return answer
    places = [texts.index(text) for text in ours]
    if answer.choice is not None:
        return Answer("choice", places.index(answer.choice), answer.strength)
    return answer if answer.ranks is None else Answer("ranking", ranks=tuple(answer.ranks[i] for i in places))


def read_task(where: str, data: Mapping[str, Any], prompt: str, names: Sequence[str]) -> Task:
    """Return the task that a record describes.

    Args:
        where: names the record in messages.
        data: its fields.
        prompt: the field that asks: a text, or a conversation as a list of `{role, content}`.
        names: the fields of the responses.

    Raises:
        UserError: a field is missing or has another type.
    """
    asked: Any = data.get(prompt)
    if not isinstance(asked, str) and not _is_conversation(asked):
        raise UserError(
            f"{where}: {prompt} must be a text or a list of messages, found {asked!r:.60}; name the field that asks "
            f"(names.prompt=...) out of {', '.join(data) or 'none'}"
        )
    if len(names) < 2:
        raise UserError(
            f"{where}: {len(names)} responses; a comparison needs 2; name their fields (names.responses=[...]) out of "
            f"{', '.join(data) or 'none'}"
        )
    wrong = next((name for name in names if not isinstance(data.get(name), str)), None)
    if wrong is not None:
        raise UserError(
            f"{where}: {wrong} must be a text, found {data.get(wrong)!r:.60}; name the fields of the responses "
            f"(names.responses=[...]) out of {', '.join(data) or 'none'}"
        )
    texts = [data[name] for name in names]
    if len(set(texts)) < len(texts):
        raise UserError(f"{where}: two responses are the same text, which cannot be compared; leave the record out")
    kind = "pair" if len(names) == 2 else "ranking"
    return Task(task_id(kind, asked, texts), kind, asked, tuple(Response(text) for text in texts))


def imported_task(task: Task, answers: tuple[tuple[str, Answer], ...]) -> Imported:
    """Return the imported task with an overlap equal to its number of answers, so that nobody else is asked."""
    overlap = max(1, len({labeler for labeler, _ in answers}))
    return Imported(Task(task.id, task.kind, task.prompt, task.responses, overlap), answers)


def read_answer(value: Any, names: Sequence[str], where: str) -> Answer:
    """Return the answer given as a name, `tie`, `neither`, or names best first (`{"value", "rank"}` if tied).

    Raises:
        UserError: it is anything else.
    """
    if value in ("tie", "neither"):
        return Answer(str(value)) if len(names) == 2 else Answer("ranking", ranks=(1,) * len(names))
    if isinstance(value, str) and value in names and len(names) == 2:
        return Answer("choice", list(names).index(value))
    ranks: dict[str, float] = {}
    if isinstance(value, list):
        for place, item in enumerate(value, start=1):
            if isinstance(item, dict):
                ranks[str(item.get("value"))] = float(item.get("rank") or place)
            else:
                ranks[str(item)] = place
    if set(ranks) != set(names):
        raise UserError(
            f"{where}: {value!r:.80} is not an answer about {', '.join(names)}; allowed: one of these names, tie, "
            "neither, or a list of all of them, the best first"
        )
    dense = dense_ranks([ranks[name] for name in names])
    if len(names) > 2:
        return Answer("ranking", ranks=dense)
    return Answer("tie") if dense[0] == dense[1] else Answer("choice", int(dense[1] < dense[0]))


def by_task(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    """Return the judgements of each task, without repeated answers."""
    found: dict[str, list[Judgement]] = {}
    for judgement in judgements:
        if not judgement.repeat:
            found.setdefault(judgement.task, []).append(judgement)
    return found


def response_names(task: Task) -> dict[str, str]:
    """Return `response1`, `response2`, ... with their texts."""
    return {f"response{i}": response.text for i, response in enumerate(task.responses, start=1)}


def best_first(answer: Answer) -> list[str]:
    """Return the names of a ranking's responses, best first; tied ones in the order shown."""
    ranks = answer.ranks or ()
    return [f"response{i + 1}" for i in sorted(range(len(ranks)), key=lambda i: ranks[i])]


def labeler_name(tool: str, user: Any) -> str:
    """Return a labeler's name for another tool's user: the e-mail address, or else the number."""
    name = user.get("email") or user.get("id") if isinstance(user, dict) else user
    return re.sub(r"[^\w.@+-]", "-", str(name))[:64] if name else f"{tool}-unknown"


def as_object(value: Any, where: str) -> Mapping[str, Any]:
    """Return a JSON object.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} must be an object, found {value!r:.60}")
    return value


def _is_conversation(prompt: Prompt | Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(each, dict) and isinstance(each.get("content"), str) and isinstance(each.get("role"), str)
            for each in prompt
        )
    )
