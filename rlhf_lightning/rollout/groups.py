"""The responses to one prompt: `size` adjacent rows of a rollout."""

from __future__ import annotations

import torch
from torch import Tensor


def rows_of_groups(groups: Tensor, size: int) -> Tensor:
    """Return the row numbers of the given groups, one group after the other.

    >>> rows_of_groups(torch.tensor([2, 0]), 3)
    tensor([6, 7, 8, 0, 1, 2])
    """
    return (groups.unsqueeze(1) * size + torch.arange(size, device=groups.device)).flatten()
