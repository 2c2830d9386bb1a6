"""Importing and exporting preferences of Label Studio: its JSON format (1.23), not JSON-MIN or CSV.

A task has `data` and `annotations`, whose `result` has type `pairwise` (`left` or `right`), `ranker` (the items' ids
under the name of the tag, best first) or `choices` (`tie` or `neither`). Label Studio accepts a user's address only if
that user is a member of the project, so a labeler's name is also in `meta` of the result, which Label Studio keeps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.interchange import (
    DEFAULT_NAMES,
    Imported,
    Json,
    Names,
    as_object,
    best_first,
    by_task,
    imported_task,
    labeler_name,
    read_answer,
    read_task,
    response_names,
)
from rlhf_lightning.feedback.records import Answer, Judgement, Task

_VERDICT = "verdict"  # the tag that expresses ties
_CHAT = '<Paragraphs name="prompt" value="$prompt" layout="dialogue" nameKey="role" textKey="content"/>'
_TEXT = '<Text name="prompt" value="$prompt"/>'


def to_label_studio(
    tasks: Iterable[Task], judgements: Iterable[Judgement], question: str = "preference"
) -> Iterator[Json]:
    """Yield one Label Studio task per task, with its annotations; skips are left out."""
    answers = by_task(judgements)
    for task in tasks:
        yield {
            "data": {"prompt": task.prompt, **_data(task), "task": task.id},
            "annotations": [
                {
                    **({"completed_by": {"email": each.labeler}} if "@" in each.labeler else {}),
                    "lead_time": each.seconds,
                    "result": [{**_result(each.answer, question), "meta": _meta(each)}],
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
        UserError: a task that cannot be read, by its number; or no annotation has the tag, but some have others.
    """
    known, others = False, set[str]()
    for number, each in enumerate(tasks, start=1):
        where = f"Label Studio task {number}"
        if "data" not in each:
            raise UserError(f"{where}: there is no `data`; export the project as JSON, not as JSON-MIN")
        data = dict(as_object(each["data"], f"{where}: data"))
        chosen = _responses(data, names, where)
        task = read_task(where, data, names.prompt, chosen)
        answers = []
        for annotation in each.get("annotations") or ():
            if annotation.get("was_cancelled"):
                continue
            result = annotation.get("result") or []
            ours = [part for part in result if part.get("from_name") in (names.question, _VERDICT)]
            known, others = known or bool(ours), others | {str(part.get("from_name")) for part in result}
            said = [value for value in (_value(part, chosen) for part in ours) if value is not None]
            if len(said) > 1:
                raise UserError(f"{where}: an annotation says both {said[0]!r:.40} and {said[1]!r:.40}; leave one out")
            if said:
                answers.append((_labeler(annotation), read_answer(said[0], chosen, where)))
        yield imported_task(task, tuple(answers))
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


def _meta(judgement: Judgement) -> Json:
    ranks = judgement.answer.ranks
    tied = ranks is not None and len(set(ranks)) < len(ranks)
    named = {f"response{i}": rank for i, rank in enumerate(ranks or (), start=1)}
    return {"labeler": judgement.labeler, **({"ranks": named} if tied else {})}


def _labeler(annotation: Json) -> str:
    """Return the name in `meta`, if the answer went through a project that does not know its user."""
    noted = [(part.get("meta") or {}).get("labeler") for part in annotation.get("result") or ()]
    return labeler_name("label-studio", next(filter(None, noted), annotation.get("completed_by")))


def _result(answer: Answer, question: str) -> Json:
    """Return an answer as Label Studio writes it: the tag for pairs refers to itself."""
    if answer.choice is not None:
        side = ("left", "right")[answer.choice]
        return {"from_name": question, "to_name": question, "type": "pairwise", "value": {"selected": side}}
    if answer.ranks is not None:
        order = {"ranker": {question: best_first(answer)}}
        return {"from_name": question, "to_name": "responses", "type": "ranker", "value": order}
    return {"from_name": _VERDICT, "to_name": "prompt", "type": "choices", "value": {"choices": [answer.verdict]}}


def _value(each: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return a name, `tie`, `neither`, or names best first; None if a result has none of these."""
    kind, value = each.get("type"), each.get("value") or {}
    if kind == "pairwise" and value.get("selected") in ("left", "right"):
        return names[("left", "right").index(value["selected"])]
    if kind == "ranker":
        ranked = value.get("ranker")
        order = next(iter(ranked.values()), None) if isinstance(ranked, dict) else ranked
        return _with_ties(order, (each.get("meta") or {}).get("ranks"))
    return value["choices"][0] if kind == "choices" and value.get("choices") else None


def _with_ties(order: Any, ranks: Any) -> Any:
    """Return an order with the ranks that were noted with it, unless it has been changed since."""
    if not isinstance(order, list) or not isinstance(ranks, dict) or set(ranks) != set(order):
        return order
    noted = [ranks[name] for name in order]
    return [{"value": name, "rank": rank} for name, rank in ranks.items()] if noted == sorted(noted) else order
