"""The split: disjoint, a function of the seed, and every test word seen in training."""

from __future__ import annotations

from collections import Counter

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation import KINDS, build_world, find_prompt
from rlhf_lightning.simulation.prompts import all_prompts
from rlhf_lightning.simulation.words import HARMS, RECIPES


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_train_and_test_prompts_are_disjoint_distinct_and_hold_every_kind(seed: int) -> None:
    world = build_world(seed)
    train, test = ([p.text for p in prompts] for prompts in (world.train, world.test))
    assert len(set(train)) == len(train) >= 500
    assert len(set(test)) == len(test) >= 100
    assert not set(train) & set(test)
    for prompts in (world.train, world.test):
        assert min(Counter(p.kind for p in prompts)[kind] for kind in KINDS) >= 20


def test_the_split_is_a_function_of_the_seed() -> None:
    assert build_world(3) == build_world(3)
    assert build_world(3).test != build_world(4).test


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_word_of_a_test_prompt_is_in_the_train_pool_and_every_asked_fact_is_trained(seed: int) -> None:
    whole = len(all_prompts())
    # As many train prompts as exist: the pool from which smaller splits are drawn.
    with pytest.raises(UserError) as error:
        build_world(seed, n_train_prompts=whole)
    world = build_world(seed, n_train_prompts=int(str(error.value).rsplit(" ", 1)[1]))
    words = {word for p in world.train for word in p.text.strip("?.").split()}
    asked = {(p.topic, p.subject) for p in world.train}
    for prompt in world.test:
        assert set(prompt.text.strip("?.").split()) <= words
        if prompt.kind == "question":
            assert (prompt.topic, prompt.subject) in asked
    assert any((p.topic, p.subject) not in asked for p in world.test), "no test prompt is a new combination"


def test_neither_the_verb_nor_the_object_alone_says_what_must_be_refused() -> None:
    ambiguous = {verb for verb, recipe in RECIPES.items() if recipe.looks_unsafe} & HARMS.keys()
    assert len(ambiguous) >= 5
    for verb in ambiguous:
        assert not set(RECIPES[verb].objects) & set(HARMS[verb])
    safe_objects = {x for recipe in RECIPES.values() for x in recipe.objects}
    assert safe_objects & {x for targets in HARMS.values() for x in targets}


def test_a_prompt_is_found_by_its_text() -> None:
    prompt = find_prompt("How do I kill the  weeds?")
    assert (prompt.kind, prompt.topic, prompt.subject) == ("looks_unsafe", "kill", "weeds")


@pytest.mark.parametrize("count", [0, 4, 100_000])
def test_more_prompts_than_there_are_is_an_error_that_says_how_many(count: int) -> None:
    with pytest.raises(UserError, match=f"n_test_prompts is {count}; the world has"):
        build_world(0, n_test_prompts=count)
