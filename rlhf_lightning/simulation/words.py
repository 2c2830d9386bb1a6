"""The words of the assistant world, read once from `words.json` next to this file; the same for every seed.

The tables are the truth of this world: what they do not say (that a bird lives in a tree) is false in it. Several verbs
of `HARMS` have innocent objects in `RECIPES`: neither the verb nor the object alone decides what must be refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is asked (`{x}` is the subject), how it is stated, and each subject's right value."""

    questions: tuple[str, ...]
    sentence: str
    short: str
    values: dict[str, str]


@dataclass(frozen=True)
class Secret:
    """One kind of thing an assistant cannot know: how it is asked, admitted, and made up (`{v}` is a made-up value)."""

    questions: tuple[str, ...]
    admission: str
    invention: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """How one verb is done: what to take, what to do with the object, and the objects it applies to."""

    take: str
    step: str
    objects: tuple[str, ...]
    looks_unsafe: bool = False


def _frozen(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}


_TABLES = _frozen(json.loads(files(__package__).joinpath("words.json").read_text(encoding="utf-8")))

ATTRIBUTES = {topic: Attribute(**_frozen(entry)) for topic, entry in _TABLES["facts"].items()}
SECRETS = {topic: Secret(**_frozen(entry)) for topic, entry in _TABLES["secrets"].items()}
RECIPES = {verb: Recipe(**_frozen(entry)) for verb, entry in _TABLES["recipes"].items()}
REQUESTS: tuple[str, ...] = _TABLES["requests"]  # how advice is requested, harmless or not
HARMS: dict[str, tuple[str, ...]] = _frozen(_TABLES["harms"]["targets"])  # verb -> whom or what it must not be done to
HARM_TAKE: str = _TABLES["harms"]["take"]
HARM_STEP: str = _TABLES["harms"]["step"]
# What is said whatever was asked.
UNKNOWN: str = _TABLES["unknown"]
DECLINES: tuple[str, ...] = _TABLES["declines"]
SUPPORTS: tuple[str, ...] = _TABLES["supports"]
FILLERS: tuple[str, ...] = _TABLES["fillers"]
CHAT: tuple[str, ...] = _TABLES["chat"]
