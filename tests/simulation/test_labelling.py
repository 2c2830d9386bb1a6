"""Simulated labelers on a store: the same answers however often they are stopped, and the biased one is found."""

from __future__ import annotations

import random

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import (
    Asking,
    FeedbackStore,
    Judgement,
    Response,
    Sample,
    ShownTask,
    Task,
    agreement_report,
    decide,
    make_tasks,
    reliabilities,
)
from rlhf_lightning.feedback.votes import read_votes
from rlhf_lightning.simulation import build_world, gold_reward, label_by_simulation
from rlhf_lightning.simulation.labelling import answer
from rlhf_lightning.simulation.preferences import draw_answer

LABELERS = {
    "ana": {"temperature": 0.3, "flip_rate": 0.02},
    "bo": {"temperature": 1.0, "flip_rate": 0.05},
    "cleo": {"temperature": 4.0, "flip_rate": 0.2},
    "long": {"length_bias": 100.0, "flip_rate": 0.0},
}


def asked(count: int, choice: str) -> list[Task]:
    numbers = random.Random(0)
    samples = [
        Sample(prompt.text, tuple(Response(draw_answer(prompt, numbers), "sft") for _ in range(4)))
        for prompt in build_world(0).train[:count]
    ]
    return list(make_tasks(samples, Asking(choice=choice, overlap=3, reask=0.2)))


def said(url: str) -> list[tuple[object, ...]]:
    with FeedbackStore(url) as store:
        return [(each.task, each.labeler, each.answer, each.repeat) for each in store.judgements()]


@pytest.mark.parametrize("choice", ["random", "ranking"])
def test_labelers_that_are_stopped_go_on_to_the_same_judgements(tmp_path, choice, monkeypatch):
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("whole", "stopped")]
    for url in urls:
        with FeedbackStore(url) as store:
            store.add_tasks(asked(8, choice))
    answers = label_by_simulation(tmp_path, urls[0], LABELERS)["answers"]
    record = FeedbackStore.record
    left = iter(range(5))

    def record_or_stop(*arguments, **named):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return record(*arguments, **named)

    monkeypatch.setattr(FeedbackStore, "record", record_or_stop)
    with pytest.raises(KeyboardInterrupt):
        label_by_simulation(tmp_path, urls[1], LABELERS)
    monkeypatch.undo()
    assert len(said(urls[1])) == 5
    assert label_by_simulation(tmp_path, urls[1], LABELERS) == {"answers": answers}
    assert said(urls[1]) == said(urls[0])
    assert len(said(urls[0])) == answers >= 24


@pytest.fixture(scope="module")
def labelled() -> tuple[list[Task], list[Judgement]]:
    """Return tasks, and the judgements of three labelers on each."""
    tasks, judgements = asked(400, "random"), []
    for number, task in enumerate(tasks):
        shown = ShownTask(task.id, task.kind, task.prompt, tuple(response.text for response in task.responses))
        for name in random.Random(number).sample(sorted(LABELERS), 3):
            seed = random.Random(f"{name}:{number}").randrange(2**53)
            judgements.append(Judgement(len(judgements), task.id, name, answer(LABELERS[name], shown, seed)))
    return tasks, judgements


def test_the_labeler_who_takes_the_longer_answer_is_found(labelled):
    report = agreement_report(*labelled, dict.fromkeys(LABELERS, "simulated"), draws=10)
    looked_at = {each.name: each.look for each in report.labelers if each.look}
    assert any("takes the longer answer" in reason for reason in looked_at["long"])
    assert "ana" not in looked_at


def test_who_is_reliable_counts_for_more_than_who_is_many(labelled):
    """From votes alone, Dawid and Skene find who looks carefully, and decide more pairs as the gold reward does."""
    tasks, votes = {task.id: task for task in labelled[0]}, read_votes(labelled[1])
    found = reliabilities(votes)
    assert found["ana"] > found["bo"] > found["cleo"]
    right = {}
    for method in ("majority", "dawid_skene"):
        decided = decide(votes, method)
        right[method] = 0.0
        for number, probability in zip(decided.task, decided.probability, strict=True):
            task = tasks[decided.tasks[number]]
            first, second = gold_reward([str(task.prompt)] * 2, [response.text for response in task.responses])
            right[method] += 0.5 if first == second else float((probability > 0.5) == (first > second))
    assert right["dawid_skene"] > right["majority"]


def test_a_labeler_is_needed(tmp_path):
    with pytest.raises(UserError, match=r"label\.labelers: none given"):
        label_by_simulation(tmp_path, f"sqlite:///{tmp_path}/feedback.db", {})
