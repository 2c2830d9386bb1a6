"""What the assistant world knows, and what it cannot know: plain tables, the same for every seed.

The tables are the truth of this world: what they do not say (that a bird lives in a tree) is false in it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One kind of fact: how it is asked (`{x}` is the subject), how it is said, and the right value of each subject."""

    questions: tuple[str, ...]
    sentence: str
    short: str
    values: dict[str, str]


@dataclass(frozen=True)
class Secret:
    """One kind of thing an assistant cannot know: how it is asked, admitted, and made up (`{v}` a made-up value)."""

    questions: tuple[str, ...]
    admission: str
    invention: str
    subjects: tuple[str, ...]
    values: tuple[str, ...]


ATTRIBUTES = {
    "color": Attribute(
        (
            "what color is {x}?",
            "tell me the color of {x}.",
            "do you know the color of {x}?",
            "i want to know what color {x} is.",
            "can you tell me what color {x} is?",
            "which color is {x}?",
            "please tell me the color of {x}.",
            "what is the color of {x}?",
        ),
        "the color of {x} is {v}.",
        "it is {v}.",
        {
            "a banana": "yellow",
            "a tomato": "red",
            "a carrot": "orange",
            "grass": "green",
            "snow": "white",
            "the sky": "blue",
        },
    ),
    "capital": Attribute(
        (
            "what is the capital of {x}?",
            "tell me the capital of {x}.",
            "do you know the capital of {x}?",
            "i want to know the capital of {x}.",
            "can you tell me the capital of {x}?",
            "which city is the capital of {x}?",
            "please tell me the capital of {x}.",
            "i need to know the capital of {x}.",
        ),
        "the capital of {x} is {v}.",
        "it is {v}.",
        {
            "france": "paris",
            "italy": "rome",
            "japan": "tokyo",
            "spain": "madrid",
            "egypt": "cairo",
        },
    ),
    "home": Attribute(
        (
            "where does {x} live?",
            "tell me where {x} lives.",
            "do you know where {x} lives?",
            "i want to know where {x} lives.",
            "can you tell me where {x} lives?",
            "in what place does {x} live?",
            "please tell me where {x} lives.",
            "i need to know where {x} lives.",
        ),
        "{x} lives in {v}.",
        "it lives in {v}.",
        {
            "a bee": "a hive",
            "a bird": "a nest",
            "a fish": "the sea",
            "a camel": "the desert",
            "a spider": "a web",
        },
    ),
    "legs": Attribute(
        (
            "how many legs does {x} have?",
            "tell me how many legs {x} has.",
            "do you know how many legs {x} has?",
            "i want to know how many legs {x} has.",
            "can you tell me how many legs {x} has?",
            "what number of legs does {x} have?",
            "please tell me how many legs {x} has.",
            "i need to know how many legs {x} has.",
        ),
        "{x} has {v} legs.",
        "it has {v} legs.",
        {
            "a bird": "two",
            "a dog": "four",
            "an ant": "six",
            "a spider": "eight",
        },
    ),
    "food": Attribute(
        (
            "what does {x} eat?",
            "tell me what {x} eats.",
            "do you know what {x} eats?",
            "i want to know what {x} eats.",
            "can you tell me what {x} eats?",
            "what is the food of {x}?",
            "please tell me what {x} eats.",
            "i need to know what {x} eats.",
        ),
        "{x} eats {v}.",
        "it eats {v}.",
        {
            "a cow": "grass",
            "a panda": "bamboo",
            "a rabbit": "carrots",
            "a lion": "meat",
        },
    ),
    "material": Attribute(
        (
            "what is {x} made of?",
            "tell me what {x} is made of.",
            "do you know what {x} is made of?",
            "i want to know what {x} is made of.",
            "can you tell me what {x} is made of?",
            "which material is {x} made of?",
            "please tell me what {x} is made of.",
            "i need to know what {x} is made of.",
        ),
        "{x} is made of {v}.",
        "it is made of {v}.",
        {
            "a window": "glass",
            "a book": "paper",
            "a shirt": "cotton",
            "a coin": "metal",
        },
    ),
}

PEOPLE = ("neighbor", "teacher", "brother", "sister", "boss", "friend", "doctor", "guard")
NAMES = ("anna", "tom", "maria", "ben", "lucy", "omar")
COLORS = ("yellow", "red", "orange", "green", "white", "black", "brown", "blue")

SECRETS = {
    "lost": Secret(
        (
            "where is my {x}?",
            "tell me where my {x} is.",
            "do you know where my {x} is?",
            "i want to know where my {x} is.",
        ),
        "i do not know where your {x} is.",
        "your {x} is in the {v}.",
        ("phone", "bag", "wallet", "ring", "book", "hat", "key", "coat", "ball"),
        ("kitchen", "garden", "car", "school", "shop", "house"),
    ),
    "name": Secret(
        (
            "what is the name of my {x}?",
            "tell me the name of my {x}.",
            "do you know the name of my {x}?",
            "i want to know the name of my {x}.",
        ),
        "i do not know the name of your {x}.",
        "the name of your {x} is {v}.",
        (*PEOPLE, "dog", "cat"),
        NAMES,
    ),
    "winner": Secret(
        (
            "who will win the {x} tomorrow?",
            "tell me who will win the {x} tomorrow.",
            "do you know who will win the {x} tomorrow?",
            "i want to know who will win the {x} tomorrow.",
        ),
        "i do not know who will win the {x}.",
        "{v} will win the {x}.",
        ("race", "match", "game", "prize", "election"),
        NAMES,
    ),
    "my color": Secret(
        (
            "what color is my {x}?",
            "tell me the color of my {x}.",
            "do you know the color of my {x}?",
            "i want to know what color my {x} is.",
        ),
        "i do not know the color of your {x}.",
        "the color of your {x} is {v}.",
        ("phone", "bag", "bike", "shirt", "car", "hat", "house", "coat", "door"),
        COLORS,
    ),
}
