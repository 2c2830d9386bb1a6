"""The report on labelers: biased ones are found, and others are left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rlhf_lightning.feedback.agreement import agreement_report
from rlhf_lightning.feedback.records import Answer, Judgement, Response, Task
from rlhf_lightning.feedback.tasks import check_task


@pytest.fixture(scope="module")
def labelled():
    """Return 400 pairs whose longer answer is better half of the time, judged by labelers of known habits."""
    rng = np.random.default_rng(0)
    tasks = []
    for i in range(400):
        lengths = rng.permutation([3, 9])
        shown = tuple(Response(f"{i} " + "word " * int(length)) for length in lengths)
        tasks.append(Task(str(i), "pair", f"p{i}", shown, overlap=9, reask=i % 4 == 0))
    tasks += [check_task(f"c{i}", f"good {i}", f"bad {i}") for i in range(100)]
    best = [task.check if task.check is not None else int(rng.integers(0, 2)) for task in tasks]

    def habit(name, i):
        task, right = tasks[i], best[i]
        words = [len(response.text.split()) for response in task.responses]
        if name == "long" and words[0] != words[1]:
            return int(np.argmax(words))
        if name == "first" and rng.random() < 0.6:
            return 0
        skill = {"coin": 0.5, "judge": 0.8}.get(name, 0.88)
        return right if rng.random() < skill else 1 - right

    judgements = []
    for name in ("ana", "bo", "cy", "long", "first", "coin", "judge", "fast"):
        for i, task in enumerate(tasks):
            for repeat in (False, True)[: 1 + task.reask]:
                seconds = 2.0 if name == "fast" else float(rng.uniform(15, 25))
                said = Answer("choice", habit(name, i), 2)
                judgements.append(Judgement(len(judgements), task.id, name, said, seconds, 0.0, repeat))
    return tasks, judgements


@pytest.fixture(scope="module")
def report(labelled):
    return agreement_report(*labelled, kinds={"judge": "model"}, draws=200)


def of(report, name):
    return next(each for each in report.labelers if each.name == name)


@pytest.mark.parametrize("name", ["ana", "bo", "cy", "judge"])
def test_careful_labelers_are_left_alone(report, name):
    assert of(report, name).look == ()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("long", "takes the longer answer in 100%"),
        ("first", "takes the first position"),
        ("coin", "check answers are right"),
        ("coin", "agrees with others"),
        ("coin", "when asked again"),
        ("fast", "within a quarter of the usual time"),
    ],
)
def test_a_habit_is_named(report, name, reason):
    assert any(reason in each for each in of(report, name).look)


def test_shares_are_those_of_the_habits(report):
    """Within four standard errors of the labelers' true habits."""
    assert of(report, "ana").checks.count == 100
    ana, coin = of(report, "ana"), of(report, "coin")
    assert ana.answers == 500 + 100
    for interval, truth in (
        (ana.with_self, 0.88**2 + 0.12**2),
        (coin.with_self, 0.5),
        (ana.first_position, 0.5),
        (coin.longer, 0.5),
    ):
        assert abs(interval.value - truth) < 4 * (truth * (1 - truth) / interval.count) ** 0.5
    assert ana.with_self.count == 100
    assert of(report, "fast").seconds.value == 2


def test_two_labelers_agree_as_often_as_counted_by_hand(labelled, report):
    tasks, judgements = labelled
    said = {(j.labeler, j.task): j.answer.choice for j in judgements if not j.repeat}
    names = [labeler.name for labeler in report.labelers]
    same = [said[a, task.id] == said[b, task.id] for task in tasks for i, a in enumerate(names) for b in names[:i]]
    assert report.raw.value == pytest.approx(np.mean(same))
    assert report.raw.low < report.raw.value < report.raw.high
    assert report.alpha.count == 500
    assert len(report.kappa) == 28
    value, count = report.kappa["ana", "bo"]
    together = np.mean([said["ana", task.id] == said["bo", task.id] for task in tasks])
    ana, bo = (np.mean([said[name, task.id] for task in tasks]) for name in ("ana", "bo"))
    chance = ana * bo + (1 - ana) * (1 - bo)
    assert (value, count) == (pytest.approx((together - chance) / (1 - chance)), 500)
    people = [said[n, t.id] == said["judge", t.id] for t in tasks for n in names if n != "judge"]
    assert report.between_kinds["model-person"].value == pytest.approx(np.mean(people))


def test_the_report_is_json(report):
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["labelers"][0]["checks"]["count"] == 100


def test_rankings_and_little_data_have_a_report():
    shown = tuple(Response(f"{'word ' * i}end") for i in range(3))
    task = Task("a", "ranking", "p", shown, check=2)
    judgements = [
        Judgement(0, "a", "x", Answer("ranking", ranks=(3, 2, 1))),
        Judgement(1, "a", "y", Answer("ranking", ranks=(2, 3, 1))),
        Judgement(2, "a", "z", Answer("skip")),
    ]
    report = agreement_report([task], judgements, draws=20)
    assert report.raw.value == pytest.approx(2 / 3)
    assert of(report, "y").checks.value == 1
    assert of(report, "x").longer.value == 1
    assert json.dumps(agreement_report([], []).as_dict(), allow_nan=False)
