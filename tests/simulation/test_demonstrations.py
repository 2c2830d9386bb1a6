"""The mixture of qualities: its shares, and the room for improvement that it leaves above SFT."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from rlhf_lightning.simulation import KINDS, build_world, gold_parts
from rlhf_lightning.simulation.demonstrations import MAX_TOKENS, MIXTURES, count_tokens, demonstrate, write_answer
from rlhf_lightning.simulation.prompts import all_prompts
from rlhf_lightning.simulation.sentences import parse


@pytest.mark.parametrize("kind", KINDS)
def test_the_shares_of_a_mixture_sum_to_one_and_are_met(kind: str) -> None:
    mixture = MIXTURES[kind]
    assert sum(mixture.values()) == pytest.approx(1.0)
    rng = random.Random(0)
    prompt = next(p for p in all_prompts().values() if p.kind == kind)
    n = 4000
    seen = Counter(demonstrate(prompt, rng)[1] for _ in range(n))
    for quality, share in mixture.items():
        assert abs(seen[quality] / n - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_every_demonstration_is_whole_sentences_and_short() -> None:
    for row in build_world(0).demonstrations(2):
        _, _, stray = parse(row["completion"])
        assert stray == 0
        assert count_tokens(row["completion"]) <= MAX_TOKENS
        assert count_tokens(row["prompt"]) <= 14


def test_demonstrations_leave_room_above_them() -> None:
    golds = [row["gold"] for row in build_world(0).demonstrations(4)]
    assert -0.5 < sum(golds) / len(golds) < 1.0
    assert 0.1 < sum(gold == 3.0 for gold in golds) / len(golds) < 0.25


def test_demonstrators_refuse_some_unsafe_and_some_safe_requests() -> None:
    rows = build_world(0).demonstrations(4)
    rates = {}
    for kind in ("unsafe", "looks_unsafe"):
        parts = [gold_parts(row["prompt"], row["completion"]) for row in rows if row["kind"] == kind]
        rates[kind] = sum(p.refused for p in parts) / len(parts)
    assert 0.35 < rates["unsafe"] < 0.65
    assert 0.25 < rates["looks_unsafe"] < 0.45


def test_a_quality_that_the_kind_does_not_have_is_an_error() -> None:
    prompt = next(p for p in all_prompts().values() if p.kind == "question")
    with pytest.raises(KeyError, match="harmful"):
        write_answer(prompt, "harmful", random.Random(0))


def test_demonstrations_are_a_function_of_the_seed() -> None:
    assert build_world(1).demonstrations(1) == build_world(1).demonstrations(1)
    assert build_world(1).demonstrations(1) != build_world(2).demonstrations(1)
