"""Answers of mixed quality: the demonstrations for SFT, and the answers shown to labelers.

Every kind of prompt has a mixture of qualities (`MIXTURES`). Deliberately, only about one answer in six is the best:
SFT imitates the mixture, and leaves the rest to learning from feedback.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Literal

from rlhf_lightning.simulation.prompts import Kind, Prompt, all_prompts
from rlhf_lightning.simulation.sentences import spell
from rlhf_lightning.simulation.words import (
    ATTRIBUTES,
    CHAT,
    DECLINES,
    FILLERS,
    HARM_STEP,
    HARM_TAKE,
    RECIPES,
    SECRETS,
    SUPPORTS,
    UNKNOWN,
)

Quality = Literal[
    "best",  # the full answer
    "plain",  # the short form; for advice, one half of it
    "rambling",  # the full or short answer, mixed with fillers, repetitions and other facts
    "off_topic",  # a good answer to another prompt, or chat
    "dishonest",  # a wrong fact, or made-up knowledge
    "careless",  # advice with a part that belongs to another verb or object
    "over_cautious",  # a refusal, or "i do not know", although an answer was possible
    "harmful",  # complies with what must be refused
]

MIXTURES: dict[Kind, dict[Quality, float]] = {
    "question": {
        "best": 0.17,
        "plain": 0.14,
        "rambling": 0.23,
        "off_topic": 0.10,
        "dishonest": 0.23,
        "over_cautious": 0.13,
    },
    "unknowable": {"best": 0.15, "plain": 0.16, "rambling": 0.20, "off_topic": 0.10, "dishonest": 0.39},
    "howto": {
        "best": 0.17,
        "plain": 0.14,
        "rambling": 0.25,
        "off_topic": 0.10,
        "careless": 0.22,
        "over_cautious": 0.12,
    },
    "looks_unsafe": {
        "best": 0.15,
        "plain": 0.12,
        "rambling": 0.19,
        "off_topic": 0.07,
        "careless": 0.12,
        "over_cautious": 0.35,
    },
    "unsafe": {"best": 0.16, "plain": 0.17, "rambling": 0.15, "off_topic": 0.07, "harmful": 0.45},
}

MAX_TOKENS = 23  # words and punctuation of the longest answer, without EOS


def demonstrate(prompt: Prompt, rng: random.Random) -> tuple[str, Quality]:
    """Draw a quality from the mixture of the prompt's kind, and write an answer of that quality."""
    mixture = MIXTURES[prompt.kind]
    quality = rng.choices(list(mixture), list(mixture.values()))[0]
    return write_answer(prompt, quality, rng), quality


def write_answer(prompt: Prompt, quality: Quality, rng: random.Random) -> str:
    """Write one answer of this quality, at most `MAX_TOKENS` tokens long.

    Raises:
        KeyError: the prompt's kind has no answers of this quality.
    """
    if quality not in MIXTURES[prompt.kind]:
        raise KeyError(
            f"a prompt of kind {prompt.kind!r} has no {quality!r} answer, only {list(MIXTURES[prompt.kind])}"
        )
    return _WRITERS[quality](prompt, rng)


def count_tokens(text: str) -> int:
    """Return the number of tokens of one of the world's texts: its words and punctuation marks."""
    return len(text.split()) + sum(text.count(mark) for mark in ".,?")


def _best(prompt: Prompt, rng: random.Random) -> str:
    if prompt.kind == "question":
        attribute = ATTRIBUTES[prompt.topic]
        return spell(attribute.sentence, x=prompt.subject, v=attribute.values[prompt.subject])
    if prompt.kind == "unknowable":
        return spell(SECRETS[prompt.topic].admission, x=prompt.subject)
    if prompt.kind == "unsafe":
        return f"{rng.choice(DECLINES)} {rng.choice(SUPPORTS)}"
    recipe = RECIPES[prompt.topic]
    return f"{recipe.take} {spell(recipe.step, x=prompt.subject)}"


def _plain(prompt: Prompt, rng: random.Random) -> str:
    if prompt.kind == "question":
        attribute = ATTRIBUTES[prompt.topic]
        return spell(attribute.short, v=attribute.values[prompt.subject])
    if prompt.kind == "unknowable":
        return UNKNOWN
    if prompt.kind == "unsafe":
        return rng.choice(DECLINES)
    recipe = RECIPES[prompt.topic]
    return rng.choice((recipe.take, spell(recipe.step, x=prompt.subject)))


def _rambling(prompt: Prompt, rng: random.Random) -> str:
    while True:
        core = _best(prompt, rng) if rng.random() < 0.6 else _plain(prompt, rng)
        first, second = rng.sample(FILLERS, 2)
        fact = _best(_random_prompt("question", rng), rng)
        padded = (
            f"{first} {core}",
            f"{core} {first}",
            f"{first} {core} {second}",
            f"{core} {core}",
            f"{core} {fact}",
            f"{first} {core} {fact}",
        )
        answer = rng.choice(padded)
        if count_tokens(answer) <= MAX_TOKENS:
            return answer


def _off_topic(prompt: Prompt, rng: random.Random) -> str:
    if rng.random() < 0.25:
        return rng.choice(CHAT)
    while True:
        # "question" and "howto" only: an admission or a refusal would be an answer.
        other = _random_prompt(rng.choice(("question", "howto")), rng)
        if (other.topic, other.subject) != (prompt.topic, prompt.subject):
            return _best(other, rng)


def _dishonest(prompt: Prompt, rng: random.Random) -> str:
    if prompt.kind == "unknowable":
        secret = SECRETS[prompt.topic]
        return spell(secret.invention, x=prompt.subject, v=rng.choice(secret.values))
    attribute = ATTRIBUTES[prompt.topic]
    # A popular error: each subject is always mistaken for the same other one.
    subjects = list(attribute.values)
    wrong = attribute.values[subjects[subjects.index(prompt.subject) - 1]]
    return spell(rng.choice((attribute.sentence, attribute.sentence, attribute.short)), x=prompt.subject, v=wrong)


def _careless(prompt: Prompt, rng: random.Random) -> str:
    take, step = RECIPES[prompt.topic].take, RECIPES[prompt.topic].step
    subject = prompt.subject
    other = RECIPES[rng.choice([verb for verb in RECIPES if verb != prompt.topic])]
    mistake = rng.random()
    if mistake < 0.3:
        take = other.take
    elif mistake < 0.6:
        step = other.step
    else:
        subject = rng.choice([x for x in RECIPES[prompt.topic].objects if x != subject])
    return f"{take} {spell(step, x=subject)}"


def _over_cautious(prompt: Prompt, rng: random.Random) -> str:
    if prompt.kind != "looks_unsafe" and rng.random() < 0.5:
        return UNKNOWN
    refusal = rng.choice(DECLINES)
    return f"{refusal} {rng.choice(SUPPORTS)}" if rng.random() < 0.5 else refusal


def _harmful(prompt: Prompt, rng: random.Random) -> str:
    step = spell(HARM_STEP, verb=prompt.topic, x=prompt.subject)
    return rng.choice((f"{HARM_TAKE} {step}", f"{HARM_TAKE} {step}", step))


_WRITERS: dict[Quality, Callable[[Prompt, random.Random], str]] = {
    "best": _best,
    "plain": _plain,
    "rambling": _rambling,
    "off_topic": _off_topic,
    "dishonest": _dishonest,
    "careless": _careless,
    "over_cautious": _over_cautious,
    "harmful": _harmful,
}


@cache
def _prompts_of(kind: Kind) -> tuple[Prompt, ...]:
    return tuple(prompt for prompt in all_prompts().values() if prompt.kind == kind)


def _random_prompt(kind: Kind, rng: random.Random) -> Prompt:
    return rng.choice(_prompts_of(kind))
