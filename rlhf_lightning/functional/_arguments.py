"""What every function does first: check shapes, convert to at least float32, and zero what lies outside the mask."""

from __future__ import annotations

import torch
from torch import Tensor


def check_shapes(rank: int | None = None, **tensors: Tensor) -> None:
    """Check that all tensors have the shape of the first, which has `rank` dimensions (any number if None).

    Raises:
        ValueError: naming the argument that differs. This prevents the bug of broadcasting [B] against [B, 1].
    """
    first, reference = next(iter(tensors.items()))
    if rank is not None and reference.ndim != rank:
        raise ValueError(f"`{first}` has shape {list(reference.shape)}; expected {rank} dimension(s)")
    for name, tensor in tensors.items():
        if tensor.shape != reference.shape:
            raise ValueError(
                f"`{name}` has shape {list(tensor.shape)}; expected {list(reference.shape)}, the shape of `{first}`"
            )


def check_integers(**tensors: Tensor) -> None:
    """Raise ValueError for an index tensor that does not hold integers."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise ValueError(f"`{name}` has dtype {tensor.dtype}; expected integers")


def check_positive(**values: float) -> None:
    """Raise ValueError for a number that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"`{name}` is {value}; expected a number above 0")


def check_probability(**values: float) -> None:
    """Raise ValueError for a number outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` is {value}; expected a number from 0 to 1")


def check_choice(**values: tuple[str, tuple[str, ...]]) -> None:
    """Raise ValueError for a word that is not one of its allowed values."""
    for name, (value, allowed) in values.items():
        if value not in allowed:
            raise ValueError(f"`{name}` is {value!r}; expected one of {', '.join(allowed)}")


def at_least_float32(x: Tensor) -> Tensor:
    """Return half precision, integers and booleans as float32; float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def blank(x: Tensor, valid: Tensor) -> Tensor:
    """Return `x` in at least float32 with 0 where `valid` is false: before any arithmetic, since 0 * NaN is NaN."""
    return at_least_float32(x).masked_fill(~valid, 0.0)


def divide(total: Tensor, denominator: Tensor | float | None, default: Tensor) -> Tensor:
    """Return `total / denominator`; None means `default`, where 0 becomes 1 so that no entries give 0, not NaN."""
    if denominator is None:
        return total / default.masked_fill(default == 0, 1)
    if not isinstance(denominator, Tensor):
        check_positive(denominator=denominator)
    return total / denominator
