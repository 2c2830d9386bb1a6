"""Simulated labelers answer a store's tasks, each with its own failings, as people would on the page."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback import Answer, FeedbackStore, ShownTask
from rlhf_lightning.simulation.labelers import Labeler
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import LARGEST_SECONDS, Name, Number, Positive, Text, UpToHalf, Whole


class Skill(TypedDict, total=False):
    """One labeler; see `Labeler`. With a `length_bias` of 100 it always takes the longer answer."""

    temperature: Positive
    flip_rate: UpToHalf
    length_bias: Number
    seconds: Positive  # median time of an answer


@checked("label")
def label_by_simulation(
    folder: Text | Path, store: Text, labelers: dict[Name, Skill], seed: Whole = 0
) -> dict[str, Any]:
    """Let simulated labelers answer all tasks of a store. A pipeline stage.

    The labeler with the fewest answers goes next, and coin tosses depend only on the seed, the labeler, the task and
    the number of the answer: stopped and called again, it continues to the same judgements.

    Args:
        folder: the stage's folder; nothing is written there.
        store: the URL of a feedback store.
        labelers: name -> skill.
        seed: seed of their coin tosses.

    Returns:
        `answers`: how many judgements of these labelers the store holds.

    Raises:
        UserError: there are no labelers, or a prompt is not one of the embedded world's.
    """
    if not labelers:
        raise UserError("label.labelers: none given; give {name: {temperature: 0.5, ...}, ...}")
    clock = _Clock()
    with FeedbackStore(store, clock=clock, returns_after=LARGEST_SECONDS) as opened:
        for name in labelers:
            if name not in {labeler.name for labeler in opened.labelers()}:
                opened.add_labeler(name, "simulated")
        answered = {labeler.name: labeler.judged for labeler in opened.labelers() if labeler.name in labelers}
        asked = dict(answered)
        while asked:
            name = min(asked, key=lambda name: asked[name])
            task = opened.next_task(name)
            if task is None:
                del asked[name]
                continue
            numbers = random.Random(f"{seed}:{name}:{task.id}:{asked[name]}")
            clock.now += labelers[name].get("seconds", 20.0) * math.exp(numbers.gauss(0.0, 0.5))
            opened.record(name, task.id, answer(labelers[name], task, numbers.randrange(2**53)))
            asked[name] += 1
            answered[name] += 1
        return {"answers": sum(answered.values())}


def answer(skill: Skill | Mapping[str, float], task: ShownTask, seed: int) -> Answer:
    """Return the answer of a labeler of this skill to a task."""
    labeler = Labeler(**{key: value for key, value in skill.items() if key != "seconds"}, seed=seed)  # type: ignore[arg-type]
    prompt = task.prompt if isinstance(task.prompt, str) else str(task.prompt[-1]["content"])
    if task.kind == "pair":
        return Answer("choice", choice=task.texts.index(labeler.prefer(prompt, *task.texts)[0]))
    ranking = labeler.rank(prompt, task.texts)
    return Answer("ranking", ranks=tuple(ranking.index(text) + 1 for text in task.texts))


class _Clock:
    """The labelers' own time, which advances by the time their answers take."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now
