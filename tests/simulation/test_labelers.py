"""Choices follow Bradley-Terry with flips and length bias, and the ceilings say what can be predicted of them."""

from __future__ import annotations

import math
from itertools import combinations

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation import Labeler, build_world, gold_reward, mean_certainty, oracle_accuracy

PROMPT = "what is the capital of france?"
FULL = "the capital of france is paris."  # 3.0, six words
SHORT = "it is paris."  # 2.0, three words
LONG = "it is paris. i hope this helps you."  # 1.0, eight words


def test_the_probability_is_bradley_terry_with_flips() -> None:
    p = 1 / (1 + math.exp(-1.0 / 0.8))
    assert Labeler(temperature=0.8, flip_rate=0.1).probability(1.0) == pytest.approx(0.9 * p + 0.1 * (1 - p))
    labeler = Labeler(temperature=0.01, flip_rate=0.05)
    assert labeler.probability(6.0) == pytest.approx(0.95)
    assert labeler.probability(0.0) == pytest.approx(0.5)


@pytest.mark.parametrize("flip_rate", [0.0, 0.2])
def test_choices_happen_as_often_as_the_probability_says(flip_rate: float) -> None:
    labeler = Labeler(temperature=1.0, flip_rate=flip_rate, seed=1)
    n = 5000
    share = sum(labeler.prefer(PROMPT, FULL, SHORT) == (FULL, SHORT) for _ in range(n)) / n
    p = labeler.compare(PROMPT, FULL, SHORT)
    assert p == pytest.approx(labeler.probability(1.0))
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_swapping_the_answers_swaps_the_probability() -> None:
    labeler = Labeler(length_bias=0.05)
    assert labeler.compare(PROMPT, FULL, LONG) == pytest.approx(1 - labeler.compare(PROMPT, LONG, FULL))


def test_a_length_biased_labeler_likes_the_longer_answer_better_than_an_unbiased_one() -> None:
    fair, biased = (Labeler(length_bias=bias).compare(PROMPT, LONG, SHORT) for bias in (0.0, 0.3))
    assert fair < 0.5 < biased


def test_every_pair_of_a_ranking_is_bradley_terry() -> None:
    labeler = Labeler(temperature=1.0, flip_rate=0.0, seed=2)
    answers = [SHORT, FULL, LONG]
    n = 5000
    rankings = [labeler.rank(PROMPT, answers) for _ in range(n)]
    for a, b in combinations(answers, 2):
        share = sum(r.index(a) < r.index(b) for r in rankings) / n
        p = labeler.compare(PROMPT, a, b)
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_the_bayes_ceiling_is_what_the_best_predictor_reaches() -> None:
    labeler = Labeler(temperature=1.0, flip_rate=0.1, length_bias=0.2, seed=3)
    pairs = [(PROMPT, FULL, SHORT), (PROMPT, LONG, SHORT), (PROMPT, SHORT, "i do not know that.")]
    n = 3000
    right = 0
    for prompt, a, b in pairs:
        guess = (a, b) if labeler.compare(prompt, a, b) > 0.5 else (b, a)
        right += sum(labeler.prefer(prompt, a, b) == guess for _ in range(n))
    ceiling = labeler.bayes_accuracy(pairs)
    assert abs(right / (n * len(pairs)) - ceiling) < 4 * math.sqrt(ceiling * (1 - ceiling) / (n * len(pairs)))


def test_rows_carry_gold_scores_and_the_probability_of_their_label() -> None:
    labeler = Labeler(seed=4)
    rows = build_world(0).preferences("test", 2, labeler)
    for row in rows:
        golds = gold_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
        assert golds == pytest.approx([row["gold_chosen"], row["gold_rejected"]], abs=1e-4)
        assert golds[0] != golds[1]
    pairs = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    ceiling = mean_certainty([row["label_probability"] for row in rows])
    assert ceiling == pytest.approx(labeler.bayes_accuracy(pairs), abs=1e-5)
    oracle = oracle_accuracy([row["gold_chosen"] for row in rows], [row["gold_rejected"] for row in rows])
    # Without a length bias, predicting by gold is the best predictor.
    assert abs(oracle - ceiling) < 4 * math.sqrt(ceiling * (1 - ceiling) / len(rows))


def test_ranked_rows_hold_distinct_answers_mostly_in_the_order_of_gold() -> None:
    rows = build_world(0).rankings("train", 5, 1, Labeler(seed=5))
    assert all(len(set(row["responses"])) == 5 for row in rows)
    ordered = [a >= b for row in rows for a, b in combinations(row["gold_responses"], 2)]
    assert sum(ordered) / len(ordered) > 0.8


def test_a_tie_counts_a_half_for_the_oracle() -> None:
    assert oracle_accuracy([1.0, 1.0, 0.0], [0.0, 1.0, 1.0]) == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"), [({"temperature": 0.0}, "temperature is 0.0"), ({"flip_rate": 0.6}, "flip_rate is 0.6")]
)
def test_a_value_out_of_range_is_an_error(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Labeler(**arguments)


def test_ceilings_of_no_pairs_are_an_error() -> None:
    for ceiling in (lambda: mean_certainty([]), lambda: oracle_accuracy([], []), lambda: Labeler().bayes_accuracy([])):
        with pytest.raises(UserError, match="at least one"):
            ceiling()
