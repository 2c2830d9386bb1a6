"""Regression onto expectiles, used by ILQL's value heads."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32


def expectile_loss(errors: Tensor, expectile: float = 0.7) -> Tensor:
    r"""Return asymmetric squared errors: $|\tau - 1[e < 0]|\, e^2$.

    The constant that minimises it is the $\tau$-expectile; at $\tau = 1/2$ it is half the squared error. Source: Newey
    and Powell 1987; for value functions Kostrikov et al. 2021 (arXiv:2110.06169), eq. 5.

    Args:
        errors: any shape, target minus prediction.
        expectile: $\tau$; above 1/2, predictions below the target cost more.

    Returns:
        The shape of `errors`, at least float32.

    Raises:
        ValueError: `expectile` is not between 0 and 1.

    >>> expectile_loss(torch.tensor([2.0, -2.0]), expectile=0.75)
    tensor([3., 1.])
    """
    if not 0 < expectile < 1:
        raise ValueError(f"`expectile` is {expectile}; expected a number between 0 and 1")
    errors = at_least_float32(errors)
    squares = errors.square()
    return torch.where(errors < 0, (1 - expectile) * squares, expectile * squares)
