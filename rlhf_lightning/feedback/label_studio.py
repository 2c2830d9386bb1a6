"""Importing and exporting preferences of Label Studio: its JSON format (1.23), not JSON-MIN or CSV.

A task has `data` and `annotations`, whose `result` has type `pairwise` (`left` or `right`), `ranker` (the items' ids
under the name of the tag, best first) or `choices` (`tie` or `neither`). Label Studio accepts a user's address only if
that user is a member of the project, so a labeler's name is also in `meta` of the result, which Label Studio keeps;
with it are the labeler's kind, unless a person, and how strongly which response was chosen.
"""

from __future__ import annotations

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

_VERDICT = "verdict"  # the tag that expresses ties
_CHAT = '<Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" textKey="content"/>'
_TEXT = '<Text name="prompt" value="$prompt"/>'


def to_label_studio(
    tasks: Iterable[Task],
    judgements: Iterable[Judgement],
    question: str = "preference",
    kinds: Mapping[str, str] | None = None,
) -> Iterator[Json]:
    """Yield one Label Studio task per task, with its annotations; skips are left out.

    Args:
        tasks: the tasks.
        judgements: the answers to them.
        question: the name of the tag.
        kinds: labeler -> kind; the others are people.
    """
    answers = by_task(judgements)
    for task in tasks:
        yield {
            "data": {"prompt": task.prompt, **_data(task), "task": task.id},
            "annotations": [
                {
                    **({"completed_by": {"email": each.labeler}} if "@" in each.labeler else {}),
                    "lead_time": each.seconds,
                    "result": [{**_result(each.answer, question), "meta": _meta(each, kinds or {})}],
                }
                for each in answers.get(task.id, ())
                if each.answer.verdict != "skip"
            ],
        }


def labeling_config(kind: str, count: int, chat: bool, question: str = "preference") -> str:
    """Return the labeling configuration of a project for such tasks.

    Args:
        kind: kind of the tasks, `pair` or `ranking`.
        count: responses per task.
        chat: whether prompts are conversations.
        question: the name of the tag.
    """
    prompt = _CHAT if chat else _TEXT
    if kind == "ranking":
        body = [prompt, '<List name="responses" value="$items" title="Rank the responses, the best first"/>']
        body.append(f'<Ranker name="{question}" toName="responses"/>')
    else:
        names = [f"response{i}" for i in range(1, count + 1)]
        texts = [f'<Text name="{name}" value="${name}"/>' for name in names]
        body = [prompt, f'<Pairwise name="{question}" toName="{",".join(names)}"/>', *texts]
        choices = '<Choice value="tie"/><Choice value="neither"/>'
        body.append(f'<Choices name="{_VERDICT}" toName="prompt">{choices}</Choices>')
    return "\n".join(["<View>", *(f"  {line}" for line in body), "</View>", ""])


def from_label_studio(tasks: Iterable[Json], names: Names = DEFAULT_NAMES) -> Iterator[Imported]:
    """Yield the content of Label Studio tasks; cancelled annotations are left out.

    Args:
        tasks: tasks of a JSON export.
        names: names of the tag (`question`), the prompt, and the responses; for a pair, the left one first.

    Raises:
        UserError: a task that cannot be read, by its number; two users with one name; or no annotation has the tag,
            but some have others.
    """
    known, others, users = False, set[str](), Users()
    for number, each in enumerate(tasks, start=1):
        where = f"Label Studio task {number}"
        if "data" not in each and ("fields" in each or any(name.endswith(".responses") for name in each)):
            raise UserError(f"{where}: it has no `data`, but looks like a record of Argilla; choose format=argilla")
        if "data" not in each:
            raise UserError(f"{where}: there is no `data`; export the project as JSON, not as JSON-MIN")
        data = dict(as_object(each["data"], f"{where}: data"))
        chosen = _responses(data, names, where)
        task = read_task(where, data, names.prompt, chosen)
        answers, kinds = [], dict[str, str]()
        for annotation in as_objects(each.get("annotations"), f"{where}: annotations"):
            if (cancelled := annotation.get("was_cancelled")) not in (None, False, True):
                raise UserError(f"{where}: was_cancelled must be true or false, found {cancelled!r:.60}")
            if cancelled:
                continue
            result = as_objects(annotation.get("result"), f"{where}: result")
            ours = [part for part in result if part.get("from_name") in (names.question, _VERDICT)]
            known, others = known or bool(ours), others | {str(part.get("from_name")) for part in result}
            said = [(value, part) for part in ours if (value := _value(part, chosen, where)) is not None]
            if len(said) > 1:
                both = " and ".join(f"{value!r:.40}" for value, _ in said[:2])
                raise UserError(f"{where}: an annotation says both {both}; leave one out")
            for value, part in said:
                labeler = users.labeler(_user(annotation, where), where)
                noted = _noted(part, where)
                noted = noted if "labeler" in noted else {}  # another program may note other things by these names
                strengths = as_object(noted.get("strength", {}), f"{where}: meta: strength")
                answers.append((labeler, with_strength(read_answer(value, chosen, where), chosen, strengths, where)))
                if "kind" in noted:
                    kinds[labeler] = as_labeler_kind(noted["kind"], f"{where}: meta: kind")
        yield imported_task(task, tuple(answers), where, kinds)
    if others and not known:
        raise UserError(
            f"names.question: no annotation has a result of {names.question!r}; must be one of "
            f"{', '.join(sorted(others))}"
        )


def _data(task: Task) -> Json:
    """Return the texts of a pair by name; those of a ranking as the items of a list."""
    named = response_names(task)
    return named if task.kind == "pair" else {"items": [{"id": name, "body": text} for name, text in named.items()]}


def _responses(data: Json, names: Names, where: str) -> Sequence[str]:
    """Return the names of the responses and put them into `data`, also if it had them as items of a list."""
    items = data.pop("items", None)
    if isinstance(items, list):
        found = [as_object(item, f"{where}: items") for item in items]
        data.update({str(item.get("id")): item.get("body") or item.get("title") for item in found})
        return names.responses or [str(item.get("id")) for item in found]
    return names.responses or sorted(name for name in data if name.lower().startswith("response"))


def _meta(judgement: Judgement, kinds: Mapping[str, str]) -> Json:
    """Return what Label Studio keeps without knowing it; ranks and strength say which answer they belong to."""
    noted: Json = {"labeler": judgement.labeler}
    if (kind := kinds.get(judgement.labeler, "person")) != "person":
        noted["kind"] = kind
    if judgement.answer.strength is not None:
        noted["strength"] = {f"response{(judgement.answer.choice or 0) + 1}": judgement.answer.strength}
    ranks = judgement.answer.ranks
    tied = ranks is not None and len(set(ranks)) < len(ranks)
    named = {f"response{i}": rank for i, rank in enumerate(ranks or (), start=1)}
    return {**noted, **({"ranks": named} if tied else {})}


def _user(annotation: Mapping[str, Any], where: str) -> Any:
    """Return the name in `meta`, if the answer went through a project that does not know its user."""
    noted = [_noted(part, where).get("labeler") for part in annotation["result"]]
    return next((name for name in noted if name is not None), annotation.get("completed_by"))


def _noted(part: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    return as_object(part.get("meta") or {}, f"{where}: meta")


def _result(answer: Answer, question: str) -> Json:
    """Return an answer as Label Studio writes it: the tag for pairs refers to itself."""
    if answer.choice is not None:
        side = ("left", "right")[answer.choice]
        return {"from_name": question, "to_name": question, "type": "pairwise", "value": {"selected": side}}
    if answer.ranks is not None:
        order = {"ranker": {question: best_first(answer)}}
        return {"from_name": question, "to_name": "responses", "type": "ranker", "value": order}
    return {"from_name": _VERDICT, "to_name": "prompt", "type": "choices", "value": {"choices": [answer.verdict]}}


def _value(each: Mapping[str, Any], names: Sequence[str], where: str) -> Any:
    """Return a name, `tie`, `neither`, or names best first; None if nothing was chosen.

    Raises:
        UserError: it is none of these.
    """
    kind, value = each.get("type"), as_object(each.get("value") or {}, f"{where}: value")
    if kind == "pairwise":
        if value.get("selected") not in ("left", "right"):
            raise UserError(f"{where}: selected must be left or right, found {value.get('selected')!r:.60}")
        return names[("left", "right").index(value["selected"])]
    if kind == "ranker":
        ranked = value.get("ranker")
        if isinstance(ranked, dict) and len(ranked) != 1:
            raise UserError(f"{where}: ranker must have one list, the best first, found {', '.join(ranked) or 'none'}")
        order = next(iter(ranked.values())) if isinstance(ranked, dict) else ranked
        return _with_ties(order, _noted(each, where).get("ranks"))
    if kind != "choices":
        raise UserError(f"{where}: an answer has the type {kind!r:.60}; must be pairwise, ranker or choices")
    chosen = as_list(value.get("choices"), f"{where}: choices")
    if len(chosen) > 1:
        raise UserError(f"{where}: an annotation says both {chosen[0]!r:.40} and {chosen[1]!r:.40}; leave one out")
    return chosen[0] if chosen else None


def _with_ties(order: Any, ranks: Any) -> Any:
    """Return an order with the ranks that were noted with it, unless it has been changed since."""
    if not isinstance(order, list) or not isinstance(ranks, dict):
        return order
    if not all(isinstance(name, str) for name in order) or set(ranks) != set(order):
        return order
    tied = [{"value": name, "rank": ranks[name]} for name in order]
    numbers = [rank for rank in ranks.values() if isinstance(rank, int | float)]
    return tied if len(numbers) < len(ranks) or [ranks[name] for name in order] == sorted(numbers) else order
