"""Win rates by a judge: both orders, and what length alone explains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.evaluation import in_both_orders, length_controlled_win_rate
from rlhf_lightning.evaluation.judged import judged_metrics


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
