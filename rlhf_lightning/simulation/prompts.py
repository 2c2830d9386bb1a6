"""Every prompt of the world, and the split: test prompts combine the words of the train prompts in unseen ways."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from rlhf_lightning.errors import UserError
from rlhf_lightning.simulation.sentences import spell
from rlhf_lightning.simulation.words import ATTRIBUTES, HARMS, RECIPES, REQUESTS, SECRETS

Kind = Literal["question", "unknowable", "howto", "looks_unsafe", "unsafe"]
KINDS: tuple[Kind, ...] = get_args(Kind)

UNSEEN_SHARE = 0.15  # of the (topic, subject) pairs that may be kept out of the train split altogether
MIN_TOPICS = 3  # a subject must occur with this many topics for one of them to be kept out


@dataclass(frozen=True)
class Prompt:
    """One prompt. `topic` is the attribute, secret or verb it is about; `subject` is the thing or person.

    Kinds: `question` (a known fact is asked), `unknowable` (only the user, or nobody, can know), `howto` (advice),
    `looks_unsafe` (advice that sounds dangerous and is not: "how do i kill the weeds?"), `unsafe` (must be refused).
    """

    text: str
    kind: Kind
    topic: str
    subject: str


@cache
def all_prompts() -> dict[str, Prompt]:
    """Return every prompt of the world by its text; the same for every seed."""
    prompts: list[Prompt] = []
    for topic, attribute in ATTRIBUTES.items():
        prompts += [Prompt(spell(q, x=x), "question", topic, x) for x in attribute.values for q in attribute.questions]
    for topic, secret in SECRETS.items():
        prompts += [Prompt(spell(q, x=x), "unknowable", topic, x) for x in secret.subjects for q in secret.questions]
    for verb, recipe in RECIPES.items():
        kind: Kind = "looks_unsafe" if recipe.looks_unsafe else "howto"
        prompts += [Prompt(spell(q, verb=verb, x=x), kind, verb, x) for x in recipe.objects for q in REQUESTS]
    for verb, targets in HARMS.items():
        prompts += [Prompt(spell(q, verb=verb, x=x), "unsafe", verb, x) for x in targets for q in REQUESTS]
    return {prompt.text: prompt for prompt in prompts}


def find_prompt(text: str) -> Prompt:
    """Return the prompt with this text (spaces do not matter).

    Raises:
        UserError: the text is not a prompt of the world, so the rubric cannot judge an answer to it.
    """
    prompt = all_prompts().get(text) or all_prompts().get(" ".join(text.split()).lower())
    if prompt is None:
        raise UserError(
            f"prompt {text!r} is not one of the assistant world's; the gold reward only judges answers to prompts of "
            "prompts_train.jsonl and prompts_test.jsonl (for other prompts set reward.function or reward.model)"
        )
    return prompt


def split_prompts(n_train: int, n_test: int, rng: random.Random) -> tuple[list[Prompt], list[Prompt]]:
    """Return disjoint train and test prompts, each with about the same number of every kind.

    A test prompt is either a (topic, subject) of the train split in a wording in which it is not asked there, or a
    (topic, subject) that the train split does not have in any wording: "how do i beat the doctor?" is unseen, "beat"
    and "doctor" are not. The latter only if the subject occurs with other topics: nobody can guess a fact or know an
    unseen word.

    Raises:
        UserError: more prompts are requested than the world has.
    """
    groups: dict[tuple[str, str], list[Prompt]] = {}
    for prompt in all_prompts().values():
        groups.setdefault((prompt.topic, prompt.subject), []).append(prompt)
    left = Counter(subject for _, subject in groups)
    train_pool: dict[Kind, list[Prompt]] = {kind: [] for kind in KINDS}
    test_pool: dict[Kind, list[Prompt]] = {kind: [] for kind in KINDS}
    order = sorted(groups)
    rng.shuffle(order)
    for key in order:
        wordings = groups[key]
        rng.shuffle(wordings)
        kind = wordings[0].kind
        # One per pair: pairs that are kept away would count as often as they have wordings.
        test_pool[kind].append(wordings[0])
        if kind != "question" and left[key[1]] >= MIN_TOPICS and rng.random() < UNSEEN_SHARE:
            left[key[1]] -= 1
        else:
            train_pool[kind] += wordings[1:]
    return _take(train_pool, n_train, "n_train_prompts", rng), _take(test_pool, n_test, "n_test_prompts", rng)


def _take(pool: dict[Kind, list[Prompt]], count: int, name: str, rng: random.Random) -> list[Prompt]:
    available = sum(map(len, pool.values()))
    if not len(KINDS) <= count <= available:
        raise UserError(
            f"{name} is {count}; the world has {available} prompts for it: choose {len(KINDS)} to {available}"
        )
    for prompts in pool.values():
        rng.shuffle(prompts)
    # Round robin over the kinds, so that every kind has the same share until it runs out.
    longest = max(map(len, pool.values()))
    turns = [pool[kind][turn] for turn in range(longest) for kind in KINDS if turn < len(pool[kind])]
    taken = turns[:count]
    rng.shuffle(taken)
    return taken
