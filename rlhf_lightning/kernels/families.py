"""Transformers families whose layers share one form, so that a part can be given another forward pass."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from rlhf_lightning.kernels.registry import GATED

# Prefixes of their class names.
GATED_FAMILIES = tuple(family.capitalize() for family in GATED)


def is_part(module: nn.Module, part: str) -> bool:
    """Return whether a module is transformers' own `part` (`MLP`, `DecoderLayer`) of one of these families."""
    kind = type(module)
    names = {f"{family}{part}" for family in GATED_FAMILIES}
    return kind.__name__ in names and kind.__module__.startswith("transformers.")


def mix_in(mixin: Any, module: nn.Module) -> None:
    """Give a module the mixin's forward pass in front of its own. Names and weights stay."""
    kind: Any = type(module)
    module.__class__ = _mixed(mixin, kind)


@functools.cache
def _mixed(mixin: Any, kind: Any) -> Any:
    return type(f"{mixin.__name__}{kind.__name__}", (_Mixed, mixin, kind), {"mixed": (mixin, kind)})


class _Mixed:
    """A class created at run time, whose objects are pickled through the two classes that it combines."""

    mixed: tuple[Any, Any]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        found: Any = super().__reduce_ex__(2)  # how to make an empty object, its class, and its state
        return _blank, type(self).mixed, *found[2:]


def _blank(mixin: Any, kind: Any) -> Any:
    made = _mixed(mixin, kind)
    return made.__new__(made)
