from __future__ import annotations

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
