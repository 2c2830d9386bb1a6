"""From responses to tasks."""

from __future__ import annotations

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.records import EVERYBODY, Response
from rlhf_lightning.feedback.tasks import Asking, Sample, check_task, make_tasks, spread


def sample(prompt, *texts, scores=None):
    scores = scores or [()] * len(texts)
    pairs = zip(texts, scores, strict=True)
    return Sample(prompt, tuple(Response(text, f"policy {i}", score) for i, (text, score) in enumerate(pairs)))


MANY = [sample(f"prompt {i}", *(f"answer {j} to {i}" for j in range(4))) for i in range(200)]


def texts(task):
    return {response.text for response in task.responses}


@pytest.mark.parametrize("choice", ["random", "ranking"])
def test_identical_and_empty_responses_are_not_compared(choice):
    samples = [sample("a", "x", "x ", "", " \n"), sample("b", "x", "x\n", "y"), sample("c")]
    (task,) = make_tasks(samples, Asking(choice, pairs=10))
    assert task.prompt == "b"
    assert task.kind == "pair"
    assert texts(task) == {"x", "y"}


def test_tasks_depend_on_the_seed_and_their_content_alone():
    backwards = [Sample(each.prompt, each.responses[::-1]) for each in reversed(MANY)]
    once = {task.id: task for task in make_tasks(MANY, Asking(pairs=2, seed=3))}
    assert once == {task.id: task for task in make_tasks(backwards, Asking(pairs=2, seed=3))}
    assert len(once) == 400
    other = {task.id: task for task in make_tasks(MANY, Asking(pairs=2, seed=4))}
    assert once != other


def test_the_order_shown_is_random():
    """In 400 pairs, the response that sorts first is shown first about half of the time (5 standard deviations)."""
    tasks = list(make_tasks(MANY, Asking(pairs=2)))
    first = sum(task.responses[0].text == min(texts(task)) for task in tasks)
    assert abs(first - 200) < 5 * 10


def test_a_source_stays_with_its_response():
    for task in make_tasks(MANY[:20], Asking("ranking")):
        assert all(response.source == f"policy {response.text.split()[1]}" for response in task.responses)


def test_uncertain_pairs_have_the_smallest_margin_of_one_score():
    samples = [
        sample("a", "1", "2", "3", scores=[(0.0,), (1.0,), (1.2,)]),
        sample("b", "4", "5", scores=[(0.0,), (0.1,)]),
        sample("c", "6", "7", scores=[(0.0,), (5.0,)]),
    ]
    chosen = list(make_tasks(samples, Asking("uncertain", limit=2)))
    assert [texts(task) for task in chosen] == [{"4", "5"}, {"2", "3"}]
    assert len(list(make_tasks(samples, Asking("uncertain", pairs=3)))) == 5


def test_uncertain_pairs_are_those_about_whose_difference_several_scores_disagree():
    """Both judge b equally worse; about a they contradict each other."""
    samples = [
        sample("b", "1", "2", scores=[(0.0, 0.0), (0.1, 0.1)]),
        sample("a", "3", "4", scores=[(1.0, 0.0), (0.0, 1.0)]),
    ]
    assert [task.prompt for task in make_tasks(samples, Asking("uncertain"))] == ["a", "b"]


def test_best_is_asked_against_worst():
    scored = sample("a", "1", "2", "3", scores=[(0.0, 3.0), (5.0, 0.0), (1.0, 1.0)])
    (task,) = make_tasks([scored, sample("even", "1", "2", scores=[(1.0,), (1.0,)])], Asking("best_worst"))
    assert texts(task) == {"2", "3"}


@pytest.mark.parametrize("scores", [None, [(1.0,), (1.0, 2.0)], [(1.0,), ()]])
@pytest.mark.parametrize("choice", ["uncertain", "best_worst"])
def test_choices_by_score_need_scores(choice, scores):
    with pytest.raises(UserError, match="choice=random"):
        list(make_tasks([sample("a", "1", "2", scores=scores)], Asking(choice)))


def test_shares_are_of_tasks():
    tasks = list(make_tasks(MANY, Asking(pairs=6, overlap=3, overlap_share=0.25, reask=0.1)))
    assert len(tasks) == 1200
    assert {task.overlap for task in tasks} == {1, 3}
    assert abs(sum(task.overlap == 3 for task in tasks) - 300) < 5 * 15
    assert abs(sum(task.reask for task in tasks) - 120) < 5 * 10.4


@pytest.mark.parametrize(
    "wrong", [{"choice": "all"}, {"pairs": 0}, {"limit": 0}, {"overlap": 0}, {"overlap_share": 1.5}, {"reask": -0.1}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Asking(**wrong)


def test_a_check_task_knows_its_answer_and_is_for_everybody():
    positions = set()
    for i in range(20):
        task = check_task(f"prompt {i}", f"good {i}", f"bad {i}")
        assert task.responses[task.check].text == f"good {i}"
        assert task.overlap == EVERYBODY
        positions.add(task.check)
    assert positions == {0, 1}
    with pytest.raises(UserError, match="must differ"):
        check_task("a", "same", "same ")


@pytest.mark.parametrize(("tasks", "checks"), [(10, 3), (3, 10), (0, 2), (5, 0)])
def test_check_tasks_are_spread(tasks, checks):
    ordinary, known = [f"t{i}" for i in range(tasks)], [f"c{i}" for i in range(checks)]
    mixed = spread(ordinary, known)
    assert sorted(mixed) == sorted(ordinary + known)
    assert [each for each in mixed if each in ordinary] == ordinary
    assert not tasks or mixed[0] == "t0"
