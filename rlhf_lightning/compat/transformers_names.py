"""Private names of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn


def attention_of(config: Any) -> str | None:
    """Return the attention implementation in use. `set_attn_implementation` is public, but it has no public getter."""
    found: str | None = getattr(config, "_attn_implementation", None)
    return found


def source_of(config: Any) -> tuple[str, str | None]:
    """Return the folder or hub name that a configuration was read from, and the commit of a hub name.

    A model's `name_or_path` is public; nothing public keeps the commit once it is loaded.
    """
    return str(config._name_or_path), getattr(config, "_commit_hash", None)


def kept_in_float32(network: nn.Module) -> tuple[str, ...]:
    """Return parts of the names of weights that transformers keeps in float32 when it loads a network in 16 bits."""
    return tuple(getattr(network, "_keep_in_fp32_modules_strict", None) or ())


@contextlib.contextmanager
def loads_in_float32(*parts: str) -> Iterator[None]:
    """Let `from_pretrained` keep weights whose names contain one of these parts in float32, whatever dtype it loads.

    A later cast to float32 could not restore their digits. transformers does this only for its own families.
    """
    from transformers import PreTrainedModel

    own = PreTrainedModel._keep_in_fp32_modules_strict
    PreTrainedModel._keep_in_fp32_modules_strict = {*(own or ()), *parts}
    try:
        yield
    finally:
        PreTrainedModel._keep_in_fp32_modules_strict = own
