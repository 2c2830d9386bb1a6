"""Private names of other libraries, each with the reason it is needed; a new version may break these first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn


class GuardedCasts(nn.Module):
    """A module that has a say in what `.to(dtype)`, `.half()`, `.double()` and the like make of each of its tensors.

    All of them end in `nn.Module._apply`; torch has no public hook for it.
    """

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that takes a tensor and what the cast makes of it, and returns what is kept."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        keep = self.guard_casts()
        return super()._apply(lambda tensor: keep(tensor, fn(tensor)), recurse)


def kept_in_float32(network: nn.Module) -> tuple[str, ...]:
    """Parts of names of the weights that transformers leaves in float32 when it loads a network in half precision."""
    return tuple(getattr(network, "_keep_in_fp32_modules_strict", None) or ())


@contextlib.contextmanager
def loads_in_float32(*parts: str) -> Iterator[None]:
    """Let `from_pretrained` leave weights with these parts in their names in float32, whatever type it is asked for.

    Cast afterwards, they would have lost their digits. transformers has this for its own families only.
    """
    from transformers import PreTrainedModel

    own = PreTrainedModel._keep_in_fp32_modules_strict
    PreTrainedModel._keep_in_fp32_modules_strict = {*(own or ()), *parts}
    try:
        yield
    finally:
        PreTrainedModel._keep_in_fp32_modules_strict = own


def writes(tensor: Tensor) -> int:
    """How often torch has seen the tensor written to in place: what autograd checks saved tensors by."""
    return int(tensor._version)
