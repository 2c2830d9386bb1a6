"""What labelers are shown: answers of different worth, some with a slip, all in the world's words."""

from __future__ import annotations

import random

from rlhf_lightning.simulation import Labeler, build_tokenizer, build_world, gold_reward
from rlhf_lightning.simulation.demonstrations import demonstrate
from rlhf_lightning.simulation.preferences import SLIP_SHARE, draw_answer, draw_pair, slip
from rlhf_lightning.simulation.prompts import all_prompts
from rlhf_lightning.simulation.sentences import parse


def test_a_pair_always_has_answers_of_different_worth() -> None:
    rng = random.Random(0)
    for prompt in rng.sample(list(all_prompts().values()), 100):
        a, b = gold_reward([prompt.text] * 2, list(draw_pair(prompt, rng)))
        assert a != b


def test_a_slip_never_empties_an_answer_and_stays_within_the_tokenizers_words() -> None:
    rng = random.Random(1)
    tokenizer = build_tokenizer()
    for prompt in all_prompts().values():
        slipped = slip(demonstrate(prompt, rng)[0], rng)
        assert slipped.strip()
        assert tokenizer.unk_token_id not in tokenizer(slipped).input_ids


def test_a_slip_of_the_best_answer_never_scores_above_it_and_on_average_far_below() -> None:
    rng = random.Random(2)
    prompt, best = "what is the capital of france?", "the capital of france is paris."
    golds = gold_reward([prompt] * 1000, [slip(best, rng) for _ in range(1000)])
    assert max(golds) <= 3.0
    assert sum(golds) / len(golds) < 1.0


def test_about_the_stated_share_of_answers_is_not_whole_sentences() -> None:
    rng = random.Random(3)
    prompts = list(all_prompts().values()) * 3
    stray = sum(parse(draw_answer(prompt, rng))[2] > 0 for prompt in prompts) / len(prompts)
    # A swap may restore the original, and a drop may remove a whole sentence.
    assert 0.6 * SLIP_SHARE < stray <= SLIP_SHARE + 0.03


def test_preferences_and_rankings_are_a_function_of_the_seed() -> None:
    draws = [
        (w.preferences("test", 1, Labeler()), w.rankings("train", 3, 1, Labeler())) for w in map(build_world, (5, 5, 6))
    ]
    assert draws[0] == draws[1]
    assert draws[0][0] != draws[2][0]
    assert draws[0][1] != draws[2][1]
