"""Aggregation recovers known truth, and follows Dawid and Skene's equations on their own data."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.aggregation import bradley_terry, dawid_skene, decide, reliabilities
from rlhf_lightning.feedback.records import Answer, Judgement
from rlhf_lightning.feedback.votes import read_votes

# A. P. Dawid and A. M. Skene, Applied Statistics 28 (1979), table 1: 45 patients in classes 1 to 4 by five
# anaesthetists, the first of whom saw each patient three times.
TABLE = """
111 1111  333 4334  112 2122  222 3121  222 3222  222 3322  122 2111  333 3433  222 2223  232 2223  444 4444  222 3343
111 1111  222 3212  121 1111  111 2111  111 1111  111 1111  222 2221  222 1322  222 2222  222 2221  222 3222  221 2222
111 1111  111 1111  232 2222  111 1111  111 1111  112 1121  111 1111  333 3233  111 1111  222 2222  222 3232  433 4343
221 2232  232 3233  333 3432  111 1111  111 1111  121 2111  232 2222  121 1111  222 2222
"""


def labelled() -> list[tuple[int, int, int]]:
    """Return (patient, anaesthetist, class) of every label."""
    cells = TABLE.split()
    return [
        (patient, observer, int(label) - 1)
        for patient, (three, others) in enumerate(zip(cells[::2], cells[1::2], strict=True))
        for observer, label in [*((0, c) for c in three), *enumerate(others, start=1)]
    ]


def by_the_equations(rows: list[tuple[int, int, int]], classes: int, steps: int) -> tuple[list[float], list]:
    """Apply equations 2.3 to 2.5 of the paper, number by number, starting from the shares of each patient's labels."""
    patients, observers = 1 + max(row[0] for row in rows), 1 + max(row[1] for row in rows)
    of = [[(k, c) for patient, k, c in rows if patient == i] for i in range(patients)]
    truth = [[sum(c == j for _, c in each) / len(each) for j in range(classes)] for each in of]
    for _ in range(steps):
        share = [sum(t[j] for t in truth) / patients for j in range(classes)]
        rates = [[[0.0] * classes for _ in range(classes)] for _ in range(observers)]
        for i, k, c in rows:
            for j in range(classes):
                rates[k][j][c] += truth[i][j]
        rates = [[[x / sum(row) if sum(row) else 0.0 for x in row] for row in matrix] for matrix in rates]
        for i, each in enumerate(of):
            likelihoods = [share[j] * math.prod(rates[k][j][c] for k, c in each) for j in range(classes)]
            truth[i] = [x / sum(likelihoods) for x in likelihoods]
    return share, rates


def test_dawid_skene_is_what_the_equations_say():
    """To convergence on both sides.

    The fourth class consists of the patients to whom the first anaesthetist gave 333, 444 and 433: 5 of her 9 labels
    are 3, and 4 are right.
    """
    rows = labelled()
    assert len(rows) == 45 * 7
    fit = dawid_skene(*(np.array(column) for column in zip(*rows, strict=True)), smoothing=0.0)
    share, rates = by_the_equations(rows, 4, 200)
    np.testing.assert_allclose(fit.prior, share, atol=1e-4)
    np.testing.assert_allclose(fit.confusion, rates, atol=1e-4)
    np.testing.assert_allclose(fit.confusion[0][3], [0, 0, 5 / 9, 4 / 9], atol=1e-4)


def test_dawid_skene_recovers_known_confusion_matrices():
    """4,000 items, five labelers: a rate from about 2,000 labels has a standard error of at most 0.012."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 4000)
    confusions = np.array(
        [[[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.3, 0.7]], [[0.95, 0.05], [0.05, 0.95]]]
        + 2 * [[[0.6, 0.4], [0.1, 0.9]]]
    )
    labels = [(rng.random(4000) < confusions[k][truth, 1]).astype(int) for k in range(5)]
    items = np.tile(np.arange(4000), 5)
    fit = dawid_skene(items, np.repeat(np.arange(5), 4000), np.concatenate(labels))
    assert np.abs(fit.confusion - confusions).max() < 5 * 0.012
    majority = np.mean(labels, axis=0) > 0.5
    assert ((fit.posterior[:, 1] > 0.5) == truth).mean() > (majority == truth).mean()


def test_bradley_terry_recovers_scores_and_reliabilities():
    rng = np.random.default_rng(1)
    scores, reliability = rng.normal(0, 1.5, 30), np.array([0.98, 0.9, 0.7, 0.5])
    first, second = rng.integers(0, 30, (2, 12000))
    first, second = first[first != second], second[first != second]
    labeler = rng.integers(0, 4, len(first))
    seen = 1 / (1 + np.exp(scores[second] - scores[first]))
    wins = rng.random(len(first)) < reliability[labeler] * seen + (1 - reliability[labeler]) * (1 - seen)
    fit = bradley_terry(first, second, labeler, np.where(wins, 0, 1))
    assert np.corrcoef(fit.scores, scores)[0, 1] > 0.99
    assert np.abs(fit.reliability - reliability).max() < 0.06
    assert np.argsort(-fit.reliability).tolist() == [0, 1, 2, 3]


def judged(*answers):
    """Turn (task, labeler, answer) into votes."""
    return read_votes(
        Judgement(i, task, labeler, answer if isinstance(answer, Answer) else Answer("choice", answer, 2))
        for i, (task, labeler, answer) in enumerate(answers)
    )


@pytest.mark.parametrize("method", ["majority", "dawid_skene", "bradley_terry"])
def test_a_majority_decides_with_its_margin(method):
    votes = judged(
        *[("a", name, 0) for name in "xyz"],
        *[("b", name, answer) for name, answer in zip("xyz", (1, 1, 0), strict=True)],
        *[("c", name, Answer("ranking", ranks=(3, 1, 2))) for name in "xy"],
    )
    found = decide(votes, method)
    assert [found.tasks[i] for i in found.task] == ["a", "b", "c", "c", "c"]
    assert [(i, j) for i, j in zip(found.first, found.second, strict=True)][2:] == [(0, 1), (0, 2), (1, 2)]
    assert (found.probability > 0.5).tolist() == [True, False, False, False, True]
    assert found.share == pytest.approx([1, 2 / 3, 1, 1, 1])
    assert found.margin == pytest.approx([2, 2 / 3, 2, 1, 1])
    assert found.count.tolist() == [3, 3, 2, 2, 2]


def test_a_tie_is_half_and_skips_and_repetitions_do_not_count():
    again = Judgement(9, "a", "x", Answer("choice", 1), repeat=True)
    votes = read_votes([Judgement(0, "a", "x", Answer("neither")), Judgement(1, "b", "x", Answer("skip")), again])
    found = decide(votes, "majority")
    assert found.probability.tolist() == [0.5]
    assert found.margin.tolist() == [0]


@pytest.mark.parametrize("method", ["majority", "dawid_skene", "bradley_terry"])
@pytest.mark.parametrize("tie", [Answer("tie"), Answer("neither")])
def test_what_most_labelers_call_a_tie_is_one_and_takes_over_no_class(method, tie):
    """Most pairs are ties, and the first response is better in most others: ties must not look like the second."""
    said = {"tie": (tie, tie), "first": (0, 0), "second": (1, 1), "most": (tie, tie, 0), "half": (tie, 1)}
    numbers = {"tie": 50, "first": 30, "second": 10, "most": 10, "half": 5}
    votes = judged(
        *((f"{kind} {i}", who, answer) for kind in said for i in range(numbers[kind])
          for who, answer in zip("xyz", said[kind], strict=False))
    )  # fmt: skip
    found = decide(votes, method)
    decided = zip((found.tasks[i].split()[0] for i in found.task), np.sign(found.probability - 0.5), strict=True)
    assert set(decided) == {("tie", 0), ("first", 1), ("second", -1), ("most", 0), ("half", -1)}


def test_who_never_chose_has_no_reliability():
    votes = judged(*((str(i), who, answer) for i in range(9) for who, answer in (("x", 0), ("zoe", Answer("tie")))))
    assert list(reliabilities(votes)) == ["x"]
    ties = judged(("a", "x", Answer("tie")))
    assert reliabilities(ties) == {} and decide(ties, "dawid_skene").probability.tolist() == [0.5]


@pytest.mark.parametrize("method", ["dawid_skene", "bradley_terry"])
def test_who_is_reliable_is_found_and_decides(method):
    """Two labelers who toss coins outvote a good one in a third of all pairs, unless their unreliability is known."""
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, 600)
    names = {"good": 0.95, "fair": 0.85, "coin": 0.5, "toss": 0.5, "mean": 0.1}
    answers = [
        (str(i), name, int(best if rng.random() < skill else 1 - best))
        for i, best in enumerate(truth)
        for name, skill in names.items()
    ]
    votes = judged(*answers)
    found = reliabilities(votes, method)
    assert sorted(found, key=found.get)[0] == "mean"
    assert sorted(found, key=found.get)[-1] == "good"
    right = {way: ((decide(votes, way).probability < 0.5) == truth).mean() for way in ("majority", method)}
    assert right[method] > right["majority"] + 0.1


def test_bradley_terry_finds_who_is_unreliable_in_few_rankings_per_task():
    """A single best score per task would fit every labeler's mistakes: then all five look alike."""
    rng = np.random.default_rng(3)
    names, skill = np.array(["ana", "bo", "cleo", "coin", "toss"]), np.array([6.0, 4.0, 2.0, 0.0, 0.0])
    answers, truth = [], {}
    for task in range(200):
        truth[str(task)] = quality = rng.normal(0, 1, 4)
        for who in rng.choice(5, 3, replace=False):
            order = np.argsort(-(skill[who] * quality + rng.gumbel(size=4)))
            answers.append((str(task), names[who], Answer("ranking", ranks=tuple((np.argsort(order) + 1).tolist()))))
    votes = judged(*answers)
    found = reliabilities(votes, "bradley_terry")
    assert min(found["ana"], found["bo"]) > found["cleo"] > max(found["coin"], found["toss"])
    assert max(found["coin"], found["toss"]) < 0.7

    def right(method):
        decided = decide(votes, method)
        of = zip(decided.task, decided.first, decided.second, strict=True)
        better = np.array([truth[decided.tasks[task]][[i, j]] for task, i, j in of])
        return np.mean((decided.probability > 0.5) == (better[:, 0] > better[:, 1]))

    assert right("bradley_terry") > right("majority") + 0.02


def test_nothing_is_decided_without_votes():
    assert len(decide(read_votes([]), "dawid_skene")) == 0
    assert reliabilities(read_votes([])) == {}
    with pytest.raises(UserError, match="majority, dawid_skene, bradley_terry"):
        decide(read_votes([]), "mean")
