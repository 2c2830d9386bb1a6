"""Position embeddings that depend on the longest row of a batch (dynamic NTK, LongRoPE), found by probing.

Such a network gives a row other probabilities next to a longer row, and a token others once later ones follow. Up to
some length it does not: that length is the limit of its rows (`limits.check_row`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lightning.models.forward import backbone, bare_model

FIRST = 8  # positions compared
FAR = 2**22  # a position beyond any in use


def keep_row_limit(network: nn.Module) -> None:
    """Find the length up to which angles do not depend on a row's length, and store it as `row_limit`."""
    limits = [limit for module in _rotations(network) if (limit := _limit(module)) is not None]
    if limits:
        bare_model(network).row_limit = min(limits)


def _rotations(network: nn.Module) -> Iterator[nn.Module]:
    """Yield modules that turn position ids into angles; large modules do more than that."""
    for module in backbone(network).modules():
        small = sum(buffer.numel() for buffer in module.buffers()) < 2**16
        if "rotary" in type(module).__name__.lower() and small and not [*module.parameters()]:
            yield module


def _limit(module: nn.Module) -> int | None:
    """Return the longest row whose first angles equal those of a short row; None: any row, or unknown."""
    kinds: list[Any] = [None]
    rope_type: Any = getattr(module, "rope_type", None)
    if isinstance(rope_type, dict):
        kinds = [*rope_type]
    found = []
    for kind in kinds:
        start = _angles(module, FIRST, kind)
        if start is None or _same(start, _angles(module, FAR, kind)):
            continue
        low, high = FIRST, FAR
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _same(start, _angles(module, middle, kind)) else (low, middle)
        found.append(low)
    return min(found, default=None)


def _angles(module: nn.Module, length: int, kind: str | None) -> list[Tensor] | None:
    """Return the angles of the first positions of a row of `length` tokens, from a copy: some modules keep state."""
    device = next((buffer.device for buffer in module.buffers()), torch.device("cpu"))
    positions = torch.tensor([[*range(FIRST), length - 1]], device=device)
    x = torch.zeros(1, FIRST + 1, 1, dtype=torch.float32, device=device)
    try:
        out = copy.deepcopy(module)(x, positions) if kind is None else copy.deepcopy(module)(x, positions, kind)
        return [angles[..., :FIRST, :] for angles in out]
    except Exception:  # another kind of module, with other arguments
        return None


def _same(one: list[Tensor], other: list[Tensor] | None) -> bool:
    return other is not None and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
