from __future__ import annotations

import math
import random

import pytest

from rlhf_lightning.evaluation import distinct_n, self_bleu


def test_counts_by_hand():
    responses = ["The cat sat", "the cat ran away"]
    assert distinct_n(responses, 1) == pytest.approx(5 / 7)  # the cat sat ran away, of 7 words
    assert distinct_n(responses, 2) == pytest.approx(4 / 5)  # the-cat twice


def test_ngrams_do_not_cross_responses():
    assert distinct_n(["a", "b"], 2) == 0.0
    assert distinct_n(["a b", "c d"], 2) == 1.0


def test_a_policy_that_says_one_thing_is_not_diverse():
    assert distinct_n(["i do not know"] * 50, 1) == pytest.approx(4 / 200)
    assert distinct_n([], 1) == 0.0
    with pytest.raises(ValueError, match="n = 0"):
        distinct_n(["a"], 0)


def test_self_bleu_is_one_for_copies_and_none_for_strangers():
    same, other = "it is a very red house", "we saw two dogs there yesterday"
    assert self_bleu([same] * 4) == pytest.approx(1.0) and self_bleu([same, other]) < 0.2
    assert self_bleu([same, same, other]) == pytest.approx(self_bleu([same, other, same]))
    assert self_bleu(["", same, same]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="found 1"):
        self_bleu([same])


@pytest.mark.parametrize("text", ["No", "I can not", "one two three four five six", ""])
def test_copies_are_one_however_short(text):
    assert self_bleu([text] * 100) == 1.0
    assert self_bleu([text.upper(), f" {text} "]) == 1.0


@pytest.mark.parametrize(
    ("responses", "expected"),
    [
        (["a b c d", "a b c e"], (3 / 4 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)),  # 3 of 4, 2 of 3, 1 of 2, 0 of 1 n-grams
        (["a b", "a c"], (1 / 2 * 1 / 2) ** (1 / 2)),  # two orders
        (["a", "b"], 0.0),
        (["", "a"], 0.0),
        (["a", "a b c"], (math.exp(1 - 3) + (1 / 3 * 1 / 3 * 1 / 2) ** (1 / 3)) / 2),  # brevity, and three orders
        (
            ["a a a", "a a", "a"],
            ((2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3) + 1 + math.exp(1 - 2)) / 3,
        ),  # counts of one other, not the sum
    ],
)
def test_self_bleu_by_hand(responses, expected):
    assert self_bleu(responses) == pytest.approx(expected)


def test_self_bleu_is_the_librarys_wherever_each_order_has_a_match():
    from torchmetrics.functional.text import bleu_score

    generator = random.Random(0)
    texts = [" ".join(generator.choices("abc", k=20)) for _ in range(6)]
    scores = [float(bleu_score([x], [[*texts[:i], *texts[i + 1 :]]], smooth=True)) for i, x in enumerate(texts)]
    assert self_bleu(texts) == pytest.approx(sum(scores) / 6)
    with pytest.raises(ValueError, match="n = 0"):
        self_bleu(texts, 0)
