"""Private names of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


def attention_of(config: Any) -> str | None:
    """Return the attention that a network computes with. `set_attn_implementation` is public, and nothing reads it."""
    found: str | None = getattr(config, "_attn_implementation", None)
    return found


def source_of(config: Any) -> tuple[str, str | None]:
    """Return the folder or hub name that a configuration was read from, and the commit of the latter.

    `name_or_path` of a model is public; of the commit nothing public is left once it is loaded.
    """
    return str(config._name_or_path), getattr(config, "_commit_hash", None)


def kept_in_float32(network: nn.Module) -> tuple[str, ...]:
    """Return parts of names of the weights that transformers leaves in float32 when it loads a network in 16 bits."""
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
