"""Which rows come next, as a function of a seed and a position: no state to save or restore."""

from __future__ import annotations

import torch

from rlhf_lightning.rollout.engine import seeded_generator


def endless_order(size: int, start: int, count: int, *key: int | str) -> list[int]:
    """Return positions [start, start + count) of an endless sequence of shuffles of `size` rows.

    Pass n over the rows is a permutation drawn from (key, n), so every row comes once per pass.

    >>> passes = endless_order(4, 0, 8, "doc", 0)
    >>> sorted(passes[:4]), passes[2:6] == endless_order(4, 2, 4, "doc", 0)
    ([0, 1, 2, 3], True)
    """
    out: list[int] = []
    position = start
    while len(out) < count:
        number, offset = divmod(position, size)
        shuffled = torch.randperm(size, generator=seeded_generator("cpu", *key, number)).tolist()
        out += shuffled[offset : offset + count - len(out)]
        position = start + len(out)
    return out
