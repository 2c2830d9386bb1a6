"""Which of the responses to a prompt are trained on: the best and the worst of a group, or the best."""

from __future__ import annotations

import torch
from torch import Tensor


def best_and_worst(rewards: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the best and the worst response of each group, and whether the two differ.

    Args:
        rewards: [B], the responses to a prompt adjacent.
        group_size: G, at least 2.

    Returns:
        Row numbers [2 B / G], the best of a group before its worst; and [2 B / G], 0.0 where both have the same reward,
        which says nothing about them, and 1.0 elsewhere.

    >>> best_and_worst(torch.tensor([1.0, 3.0, 2.0, 2.0]), group_size=2)
    (tensor([1, 0, 2, 2]), tensor([1., 1., 0., 0.]))
    """
    groups = rewards.view(-1, group_size)
    first = torch.arange(len(groups), device=rewards.device) * group_size
    ends = torch.stack([first + groups.argmax(dim=1), first + groups.argmin(dim=1)], dim=1)
    return ends.flatten(), _differ(groups).repeat_interleave(2)


def best_of_each(rewards: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the row of the best response of each group, and 0.0 where the whole group has the same reward.

    >>> best_of_each(torch.tensor([1.0, 3.0, 2.0, 2.0]), group_size=2)
    (tensor([1, 2]), tensor([1., 0.]))
    """
    rows, learned = best_and_worst(rewards, group_size)
    return rows[::2], learned[::2]


def best_of_all(rewards: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the best B / G responses of all groups, the best first; groups without a difference come last.

    >>> best_of_all(torch.tensor([1.0, 3.0, 9.0, 9.0, 2.0, 5.0]), group_size=2)
    (tensor([5, 1, 4]), tensor([1., 1., 1.]))
    """
    differ = _differ(rewards.view(-1, group_size)).repeat_interleave(group_size)
    ranked = rewards.masked_fill(differ == 0, -torch.inf)
    rows = ranked.argsort(descending=True, stable=True)[: len(rewards) // group_size]
    return rows, differ[rows]


def _differ(groups: Tensor) -> Tensor:
    return (groups.amax(dim=1) != groups.amin(dim=1)).float()
