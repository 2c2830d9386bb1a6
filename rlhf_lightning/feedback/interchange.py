"""What the formats of other labelling tools have in common, and how imported data gets into a store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import Answer, Judgement, Prompt, Response, Task, dense_ranks, task_id
from rlhf_lightning.feedback.store import FeedbackStore
from rlhf_lightning.feedback.tasks import distinct

Json = dict[str, Any]


@dataclass(frozen=True)
class Imported:
    """A task from another tool, who answered what, and the record that says so, for messages.

    `kinds` has the kind of the labelers of whom the record says it; the others are people.
    """

    task: Task
    answers: tuple[tuple[str, Answer], ...]
    where: str = "a record"
    kinds: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Names:
    """What things are called in the project of another tool.

    Args:
        question: the question whose answers are read.
        prompt: the field that asks.
        responses: the fields of the responses, in the order shown; None: all that exist.

    Raises:
        UserError: a field is named twice, or no response is.
    """

    question: str = "preference"
    prompt: str = "prompt"
    responses: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.responses is not None and len(self.responses) < 2:
            raise UserError(f"names.responses: found {len(self.responses)}; name at least 2, or give null for all")
        fields = [self.prompt, *(self.responses or ())]
        if twice := [name for name in fields if fields.count(name) > 1]:
            raise UserError(f"names.responses: {twice[0]!r} is named twice, or is the prompt; name each field once")


DEFAULT_NAMES = Names()


def import_into(
    store: FeedbackStore, imported: Iterable[Imported], say: Callable[[str], object] = lambda line: None
) -> int:
    """Add tasks and answers from another tool to a store, and return the number of new answers.

    An answer that the store has already stays as it is there.

    Args:
        store: receives tasks, labelers and answers.
        imported: is checked as a whole before the store changes.
        say: receives a line about answers that differ from the store's.

    Raises:
        UserError: two answers contradict each other, one does not fit its task, or a labeler of another kind has the
            name.
    """
    read = checked_answers(imported)
    kinds = {name: kind for each in read for name, kind in each.kinds.items()}
    known_as = {labeler.name: labeler.kind for labeler in store.labelers()}
    had: dict[tuple[str, str], Answer] = {}
    for judgement in store.judgements():
        had.setdefault((judgement.labeler, judgement.task), judgement.answer)
    for each in read:
        for labeler, _ in each.answers:
            kind = kinds.get(labeler, "person")
            if (other_kind := known_as.get(labeler, kind)) != kind and (labeler, each.task.id) not in had:
                raise UserError(
                    f"{each.where}: {labeler} is known as a {other_kind} in {store.name}, and a {kind} here; import "
                    "into another store"
                )
    new, other = 0, 0
    store.add_tasks(each.task for each in read)
    for each in read:
        for labeler, given in each.answers:
            answer = _as_shown(store, each.task, given)
            if (known := had.get((labeler, each.task.id))) is not None:
                other += _said(known) != _said(answer)
                continue
            if labeler not in known_as:
                known_as[labeler] = kinds.get(labeler, "person")
                store.add_labeler(labeler, known_as[labeler])
            store.record(labeler, each.task.id, answer)
            had[labeler, each.task.id] = answer
            new += 1
    if other:
        say(f"note: {other} answers differ from those in {store.name}, which stay as they are")
    return new


def checked_answers(imported: Iterable[Imported]) -> list[Imported]:
    """Return what was imported.

    Raises:
        UserError: a labeler answers a task in two ways or has two kinds, or an answer does not fit its task.
    """
    said: dict[tuple[str, str], tuple[str, object]] = {}
    kinds: dict[str, str] = {}
    read = list(imported)
    for each in read:
        for labeler, kind in each.kinds.items():
            if (other := kinds.setdefault(labeler, kind)) != kind:
                raise UserError(f"{each.where}: {labeler} is a {kind} here and a {other} elsewhere; correct one")
        for labeler, answer in each.answers:
            answer.check(each.task.kind, len(each.task.responses))
            ours = (each.where, _said(_in_order(answer, each.task, sorted(r.text for r in each.task.responses))))
            where, first = said.setdefault((labeler, each.task.id), ours)
            if first != ours[1]:
                place = "" if where == each.where else f" (the other is in {where})"
                raise UserError(f"{each.where}: two answers of {labeler} contradict each other{place}; leave one out")
    return read


def _said(answer: Answer) -> object:
    return answer.verdict, answer.choice, answer.ranks


def _as_shown(store: FeedbackStore, task: Task, answer: Answer) -> Answer:
    """Return an answer in the order of the store's own task, which may show the same responses in another order."""
    return _in_order(answer, task, [response.text for response in store.task(task.id).responses])


def _in_order(answer: Answer, task: Task, ours: Sequence[str]) -> Answer:
    """Return an answer to a task as it reads if the responses are shown in another order."""
    texts = [response.text for response in task.responses]
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
        UserError: a field is missing or has another type, or a response is empty or the same text as another.
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
    from rlhf_lightning.data.messages import checked_text  # imports torch, which the labelling page does without

    texts = [data[name] for name in names]
    for name in (prompt, *names):
        try:
            checked_text(name, data[name])
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if blank := [name for name in names if not data[name].strip()]:
        raise UserError(f"{where}: {blank[0]} is empty, which cannot be compared; leave the record out")
    if len(distinct(map(Response, texts))) < len(texts):
        raise UserError(f"{where}: two responses are the same text, which cannot be compared; leave the record out")
    kind = "pair" if len(names) == 2 else "ranking"
    return Task(task_id(kind, asked, texts), kind, asked, tuple(Response(text) for text in texts))


def imported_task(
    task: Task, answers: tuple[tuple[str, Answer], ...], where: str, kinds: Mapping[str, str]
) -> Imported:
    """Return the imported task with an overlap equal to its number of answers, so that nobody else is asked."""
    overlap = max(1, len({labeler for labeler, _ in answers}))
    return Imported(Task(task.id, task.kind, task.prompt, task.responses, overlap), answers, where, kinds)


def read_answer(value: Any, names: Sequence[str], where: str) -> Answer:
    """Return the answer given as a name, `tie`, `neither`, or names best first (`{"value", "rank"}` if tied).

    Raises:
        UserError: it is anything else.
    """
    if value in ("tie", "neither"):
        return Answer(str(value)) if len(names) == 2 else Answer("ranking", ranks=(1,) * len(names))
    if isinstance(value, str) and value in names and len(names) == 2:
        return Answer("choice", list(names).index(value))
    ranks = _ranks(value)
    if ranks is None or set(ranks) != set(names):
        raise UserError(
            f"{where}: {value!r:.80} is not an answer about {', '.join(names)}; allowed: one of these names, tie, "
            "neither, or a list of all of them, the best first"
        )
    dense = dense_ranks([ranks[name] for name in names])
    if len(names) > 2:
        return Answer("ranking", ranks=dense)
    return Answer("tie") if dense[0] == dense[1] else Answer("choice", int(dense[1] < dense[0]))


def _ranks(value: Any) -> dict[str, float] | None:
    """Return the rank of each name in a list of names, or of objects that either all have a rank or none; else None."""
    if not isinstance(value, list):
        return None
    items = [item if isinstance(item, dict) else {"value": item} for item in value]
    given = [item["rank"] for item in items if item.get("rank") is not None]
    found = [name for item in items if isinstance(name := item.get("value"), str)]
    if not len(set(found)) == len(found) == len(items) or len(given) not in (0, len(items)):
        return None
    if not all(isinstance(rank, int | float) and not isinstance(rank, bool) and math.isfinite(rank) for rank in given):
        return None
    return dict(zip(found, given or range(1, len(found) + 1), strict=True))


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


def _is_conversation(prompt: Prompt | Any) -> bool:
    return (
        isinstance(prompt, list)
        and bool(prompt)
        and all(
            isinstance(each, dict) and isinstance(each.get("content"), str) and isinstance(each.get("role"), str)
            for each in prompt
        )
    )
