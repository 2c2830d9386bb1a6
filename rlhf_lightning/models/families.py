"""Families of transformers whose layers have one form, so that a part can be given another forward pass."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

# h + attend(norm(h)), then h + mlp(norm(h)), with a gated mlp. Each is tested.
GATED_FAMILIES = ("Gemma", "Llama", "Mistral", "Qwen2", "Qwen3")


def is_part(module: nn.Module, part: str) -> bool:
    """Whether a module is transformers' own `part` (`MLP`, `DecoderLayer`) of one of these families."""
    kind = type(module)
    names = {f"{family}{part}" for family in GATED_FAMILIES}
    return kind.__name__ in names and kind.__module__.startswith("transformers.")


def mix_in(mixin: Any, module: nn.Module) -> None:
    """Give a module the mixin's forward pass before its own. Names and weights stay."""
    kind: Any = type(module)
    module.__class__ = _mixed(mixin, kind)


@functools.cache
def _mixed(mixin: Any, kind: Any) -> Any:
    return type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {})
