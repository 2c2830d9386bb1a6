"""The answers that labelers are shown, and the rows made of their choices."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from rlhf_lightning.simulation.demonstrations import MIXTURES, Quality, demonstrate, write_answer
from rlhf_lightning.simulation.gold import gold_reward
from rlhf_lightning.simulation.labelers import Labeler
from rlhf_lightning.simulation.prompts import Prompt, all_prompts

CONTRAST_SHARE = 0.4  # of the pairs contrast a good answer with a bad one; the others are two draws from the mixture
GOOD: tuple[Quality, ...] = ("best", "plain")
BAD: tuple[Quality, ...] = ("dishonest", "careless", "over_cautious", "harmful", "off_topic")


SLIP_SHARE = 0.2  # of the ranked answers contain a slip of the tongue, as samples of a model in training do


def draw_answer(prompt: Prompt, rng: random.Random) -> str:
    """Return a draw from the mixture, sometimes with a slip, without which a reward model never learns fluency."""
    answer = demonstrate(prompt, rng)[0]
    return slip(answer, rng) if rng.random() < SLIP_SHARE else answer


def slip(answer: str, rng: random.Random) -> str:
    """Return the answer with one slip: words dropped, repeated, swapped, mixed up, or broken off."""
    words = answer.split()
    start = rng.randrange(len(words))
    end = start + rng.randint(1, 4)
    span = words[start:end]
    kind = rng.choice(("drop", "repeat", "swap", "mix", "break off"))
    if kind == "drop":
        words[start:end] = []
    elif kind == "repeat":
        words[start:end] = span * rng.randint(2, 3)
    elif kind == "swap":
        words[start:end] = rng.sample(span, len(span))
    elif kind == "mix":
        words[start:end] = rng.sample(sorted(words_of_answers()), len(span))
    else:
        words[start:] = []
    return " ".join(words) or answer


@cache
def words_of_answers() -> frozenset[str]:
    """Return every word in some answer to some prompt, with its full stop or comma if it has one."""
    rng = random.Random("words")
    return frozenset(word for prompt in all_prompts().values() for word in demonstrate(prompt, rng)[0].split())


def draw_pair(prompt: Prompt, rng: random.Random) -> tuple[str, str]:
    """Return two answers of different worth, in random order (two of equal worth would teach nothing)."""
    qualities = MIXTURES[prompt.kind]
    while True:
        if rng.random() < CONTRAST_SHARE:
            good = write_answer(prompt, rng.choice(GOOD), rng)
            bad = write_answer(prompt, rng.choice([quality for quality in BAD if quality in qualities]), rng)
            a, b = (good, bad) if rng.random() < 0.5 else (bad, good)
        else:
            a, b = demonstrate(prompt, rng)[0], demonstrate(prompt, rng)[0]
        gold_a, gold_b = gold_reward([prompt.text] * 2, [a, b])
        if gold_a != gold_b:
            return a, b


def preference_row(prompt: Prompt, labeler: Labeler, rng: random.Random) -> dict[str, Any]:
    """Return one labelled pair: prompt, chosen, rejected, and what is known because the world is simulated.

    `label_probability` is the labeler's P(chosen preferred to rejected); its `mean_certainty` is the Bayes ceiling.
    """
    chosen, rejected = labeler.prefer(prompt.text, *draw_pair(prompt, rng))
    gold_chosen, gold_rejected = gold_reward([prompt.text] * 2, [chosen, rejected])
    return {
        "prompt": prompt.text,
        "chosen": chosen,
        "rejected": rejected,
        "kind": prompt.kind,
        "gold_chosen": round(gold_chosen, 4),
        "gold_rejected": round(gold_rejected, 4),
        "label_probability": round(labeler.compare(prompt.text, chosen, rejected), 6),
    }


def ranked_row(prompt: Prompt, n_answers: int, labeler: Labeler, rng: random.Random) -> dict[str, Any]:
    """Return one ranked list: prompt and `responses`, best first, from `n_answers` distinct draws."""
    answers: list[str] = []
    while len(answers) < n_answers:
        answer = draw_answer(prompt, rng)
        if answer not in answers:
            answers.append(answer)
    ranking = labeler.rank(prompt.text, answers)
    golds = gold_reward([prompt.text] * n_answers, ranking)
    return {
        "prompt": prompt.text,
        "responses": ranking,
        "kind": prompt.kind,
        "gold_responses": [round(gold, 4) for gold in golds],
    }
