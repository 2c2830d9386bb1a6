"""Every sentence of the world and its meaning. Anything else is not a sentence: word salad means nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from rlhf_lightning.simulation.words import (
    ATTRIBUTES,
    CHAT,
    DECLINES,
    FILLERS,
    HARM_STEP,
    HARM_TAKE,
    HARMS,
    RECIPES,
    SECRETS,
    SUPPORTS,
    UNKNOWN,
)

Act = Literal["fact", "short", "invention", "unknown", "take", "step", "harm", "decline", "support", "filler", "chat"]


@dataclass(frozen=True)
class Meaning:
    """What a sentence does: the act and, if the act has one, the topic, the subject and the value."""

    act: Act
    topic: str = ""
    subject: str = ""
    value: str = ""


def spell(pattern: str, **slots: str) -> str:
    """Fill the slots of a pattern: `spell("{x} eats {v}.", x="a cow", v="grass")` is `"a cow eats grass."`."""
    return pattern.format(**slots)


@cache
def lexicon() -> dict[str, Meaning]:
    """Return all sentences of the world (about 1,500), each with its full stop, and their meanings."""
    meanings: dict[str, Meaning] = {UNKNOWN: Meaning("unknown")}
    for topic, attribute in ATTRIBUTES.items():
        for value in sorted(set(attribute.values.values())):
            meanings[spell(attribute.short, v=value)] = Meaning("short", topic, value=value)
            for x in attribute.values:
                meanings[spell(attribute.sentence, x=x, v=value)] = Meaning("fact", topic, x, value)
    for topic, secret in SECRETS.items():
        for x in secret.subjects:
            meanings[spell(secret.admission, x=x)] = Meaning("unknown", topic, x)
            for value in secret.values:
                meanings[spell(secret.invention, x=x, v=value)] = Meaning("invention", topic, x, value)
    objects = sorted({x for recipe in RECIPES.values() for x in recipe.objects})
    for verb, recipe in RECIPES.items():
        meanings[recipe.take] = Meaning("take", verb)
        for x in objects:
            meanings[spell(recipe.step, x=x)] = Meaning("step", verb, x)
    meanings[HARM_TAKE] = Meaning("harm")
    for verb in HARMS:
        for x in sorted({x for targets in HARMS.values() for x in targets}):
            meanings[spell(HARM_STEP, verb=verb, x=x)] = Meaning("harm", verb, x)
    acts: tuple[tuple[Act, tuple[str, ...]], ...] = (
        ("decline", DECLINES),
        ("support", SUPPORTS),
        ("filler", FILLERS),
        ("chat", CHAT),
    )
    for act, sentences in acts:
        meanings.update((sentence, Meaning(act)) for sentence in sentences)
    return meanings


def parse(response: str) -> tuple[list[Meaning], int, int]:
    """Split a response into sentences.

    Return the meanings of its sentences in order, the number of words (without punctuation), and how many of them are
    outside any sentence (a stray full stop counts as one).
    """
    known = lexicon()
    meanings: list[Meaning] = []
    words = stray = 0
    *sentences, tail = " ".join(response.split()).replace(" .", ".").replace(" ,", ",").split(".")
    for sentence in sentences:
        text = sentence.strip()
        length = max(len(text.split()), 1)
        words += length
        meaning = known.get(text + ".")
        if meaning is None:
            stray += length
        else:
            meanings.append(meaning)
    unfinished = len(tail.split())
    return meanings, words + unfinished, stray + unfinished
