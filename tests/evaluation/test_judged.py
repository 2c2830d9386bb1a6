"""Win rates by a judge: both orders, and what length alone explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import in_both_orders, length_controlled_win_rate, win_rate
from rlhf_lightning.evaluation.judged import by_model, judged_metrics
from rlhf_lightning.judging.comparing import Compared


def judged(judge: Any, answers: list[str], others: list[str]) -> dict[str, float]:
    lengths = [(len(one), len(other)) for one, other in zip(answers, others, strict=True)]
    return judged_metrics(judge, ["p"] * len(answers), answers, others, lengths, 1, "sft")


def test_a_judge_that_only_looks_at_the_position_sees_ties() -> None:
    found = judged(in_both_orders(lambda prompts, shown, second: [0.9] * len(shown)), ["a"] * 20, ["b"] * 20)
    assert found["judge_win_rate_vs_sft"] == 0.5
    assert found["judge_first"] == pytest.approx(0.9) and found["judge_consistent"] == 0.0


def test_a_judge_that_looks_at_the_answers_says_the_same_in_both_orders() -> None:
    better = in_both_orders(lambda prompts, shown, second: [float(a < b) for a, b in zip(shown, second, strict=True)])
    found = judged(better, ["a", "a", "c", "a"], ["b", "b", "b", "b"])
    assert found["judge_win_rate_vs_sft"] == 0.75 and found["judge_consistent"] == 1.0
    assert found["judge_first"] == 0.5
    assert found["judge_win_rate_vs_sft_low"] < 0.75 < found["judge_win_rate_vs_sft_high"]


def test_equal_answers_are_ties_that_nobody_is_asked_about() -> None:
    asked: list[str] = []

    def judge(prompts: Any, answers: Any, others: Any) -> list[tuple[float, float]]:
        asked.extend(answers)
        return [(1.0, 1.0)] * len(answers)

    assert judged(judge, ["a", "b"], ["a", "c"])["judge_win_rate_vs_sft"] == 0.75 and asked == ["b"]
    assert judged(judge, ["a"], ["a"])["judge_win_rate_vs_sft"] == 0.5 and asked == ["b"]


@pytest.mark.parametrize("answer", [[0.5], [0.5, 1.5], ["A", "B"]])
def test_a_judge_that_answers_otherwise_is_one_line(answer: Any) -> None:
    with pytest.raises(UserError, match=r"judge\.function: it must return one probability in \[0, 1\] for each of 2"):
        judged(in_both_orders(lambda prompts, shown, second: answer), ["a", "b"], ["c", "d"])


def test_a_policy_that_is_only_longer_wins_half_at_equal_lengths() -> None:
    """Simulated: the judge prefers the longer answer with a probability that grows with the difference.

    The policy's answers are longer on average and otherwise no better; once, they are also better.
    """
    generator = np.random.default_rng(0)
    own, theirs = generator.normal(60, 20, 2000), generator.normal(45, 20, 2000)
    longer = np.tanh((own - theirs) / np.sqrt(np.mean((own - theirs) ** 2)))
    for advantage, expected in ((0.0, 0.5), (1.0, 1 / (1 + np.exp(-1)))):
        won = generator.random(2000) < 1 / (1 + np.exp(-(advantage + 2 * longer)))
        found = length_controlled_win_rate(won.astype(float).tolist(), own.tolist(), theirs.tolist())
        assert won.mean() > expected + 0.04
        assert found.rate == pytest.approx(expected, abs=0.04)
        assert found.low < expected < found.high and found.high - found.low < 0.12


def test_without_differences_in_length_it_is_the_win_rate() -> None:
    found = length_controlled_win_rate([1, 1, 1, 0] * 50, [5] * 200, [5] * 200)
    assert found.rate == pytest.approx(0.75, abs=1e-3)


def test_a_policy_that_always_wins_has_a_finite_rate() -> None:
    found = length_controlled_win_rate([1.0] * 40, list(range(40)), list(range(40, 0, -1)))
    assert 0.9 < found.rate < 1.0 and found.high <= 1.0


def test_samples_of_a_prompt_are_drawn_together() -> None:
    """Copies of a prompt's outcome add no information: the interval is that of the prompts alone."""
    outcomes = [1.0, 0.0] * 15
    once = length_controlled_win_rate(outcomes, [5.0] * 30, [5.0] * 30)
    copies = [x for x in outcomes for _ in range(4)]
    apart = length_controlled_win_rate(copies, [5.0] * 120, [5.0] * 120)
    together = length_controlled_win_rate(copies, [5.0] * 120, [5.0] * 120, samples_per_prompt=4)
    width = once.high - once.low
    assert together.high - together.low == pytest.approx(width, rel=0.25) and apart.high - apart.low < 0.7 * width


@pytest.mark.parametrize(("as_shown", "swapped", "first", "same"), [(1.0, 0.0, 1.0, 0.0), (1.0, 1.0, 0.5, 1.0)])
def test_what_has_no_verdict_says_nothing_about_the_judge(as_shown: float, swapped: float, first: float, same: float):
    class Half:
        def compare(self, asked: Any) -> list[Compared | None]:
            return [None if i % 2 else Compared(0.5, as_shown, swapped, "p") for i in range(len(asked))]

    found = judged(by_model(Half()), ["a"] * 20, ["b"] * 20)  # type: ignore[arg-type]
    assert (found["judge_first"], found["judge_consistent"]) == (first, same)
    assert found["judge_win_rate_vs_sft"] == 0.5 + same / 4
    silent = judged(lambda prompts, *answers: [None] * len(prompts), ["a"] * 3, ["b"] * 3)
    assert silent["judge_win_rate_vs_sft"] == 0.5 and "judge_first" not in silent


def test_a_tie_in_both_orders_is_the_same_verdict() -> None:
    pairs = [(0.5, 0.5), (0.5, 0.9), (0.2, 0.5), (0.2, 0.9), (0.6, 0.9)]
    found = judged(lambda prompts, *answers: pairs, ["a"] * 5, ["b"] * 5)
    assert found["judge_consistent"] == 0.4


@pytest.mark.parametrize("wins", [0, 21, 30])
def test_where_one_policy_is_always_longer_by_as_much_nothing_is_known(wins: int) -> None:
    found = length_controlled_win_rate([1.0] * wins + [0.0] * (30 - wins), [9.0] * 30, [4.0] * 30)
    assert found.low < 0.01 and found.high > 0.99 and found.low < found.rate < found.high


@pytest.mark.parametrize("outcomes", [[1.0] * 10, [0.0] * 4, [0.5] * 15, [1.0, 0.0] * 7, [1.0, 0.5, 0.0, 1.0], [1.0]])
@pytest.mark.parametrize("step", [0, 1, 7])
def test_an_interval_is_never_narrower_than_wilsons(outcomes: list[float], step: int) -> None:
    theirs = [10.0 + step * (i % 5 - 2) for i in range(len(outcomes))]
    found = length_controlled_win_rate(outcomes, [10.0] * len(outcomes), theirs)
    plain = win_rate(outcomes, [0.5] * len(outcomes))
    assert found.high - found.low >= plain.high - plain.low - 1e-12
    assert 0 <= found.low <= found.rate <= found.high <= 1


@pytest.mark.parametrize(("count", "theta", "phi", "mean"), [(25, 0.0, 1.0, 0.0), (40, 1.0, 2.0, 10.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(count: int, theta: float, phi: float, mean: float) -> None:
    """In 200 simulated sets of comparisons; 0.92 is two standard errors below 0.95."""
    generator, held = np.random.default_rng(0), 0
    for _ in range(200):
        difference = generator.normal(mean, 15, count)
        longer = np.tanh(difference / np.sqrt(np.mean(difference**2)))
        won = generator.random(count) < 1 / (1 + np.exp(-theta - phi * longer))
        found = length_controlled_win_rate(won.astype(float).tolist(), difference.tolist(), [0.0] * count)
        held += found.low <= 1 / (1 + np.exp(-theta)) <= found.high
    assert held >= 0.92 * 200


def test_entries_that_do_not_fit_the_samples_are_refused() -> None:
    for outcomes, samples in (([1.0] * 3, 2), ([], 1)):
        with pytest.raises(ValueError, match=r"multiple of 2|at least one trial"):
            length_controlled_win_rate(outcomes, outcomes, outcomes, samples)
