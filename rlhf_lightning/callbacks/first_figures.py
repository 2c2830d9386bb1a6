"""The metrics that people look for first; MLflow lists metrics in the order in which they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

FIRST = (
    *("val/held_out", "val/scores", "objective/scores", "objective/kl", "objective/rlhf_reward", "kl/coef"),
    *("accuracy", "rewards/accuracies", "rewards/margins", "val/accuracy", "val/loss", "loss", "perplexity"),
    *("rollout/response_length", "rollout/eos_rate", "train/loss"),
)
T = TypeVar("T")


def first_figures_first(metrics: Iterable[tuple[str, T]]) -> list[tuple[str, T]]:
    """Return metrics with those of `FIRST` in front, in its order, and the others as they were.

    >>> first_figures_first([("time/update", 1.0), ("objective/kl", 2.0), ("objective/scores", 3.0)])
    [('objective/scores', 3.0), ('objective/kl', 2.0), ('time/update', 1.0)]
    """
    places = {name: place for place, name in enumerate(FIRST)}
    return sorted(metrics, key=lambda metric: places.get(metric[0], len(FIRST)))
