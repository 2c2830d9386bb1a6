"""Frozen adapters next to the trained one, such as the reference's or a reward model's."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def add_beside(model: Any, name: str, config: Any, trained: str) -> None:
    """Add an adapter that is only used for inference: without dropout, and with the trained adapter's kernels.

    The trained adapter existed when the network got its kernels and its dropout was switched off; this one comes later.
    With other kernels, a copy of the trained adapter would differ from it by rounding.
    """
    config = copy.copy(config)
    config.lora_dropout = 0.0
    model.add_adapter(name, config)
    modules = dict(model.named_modules())
    for key, module in modules.items():
        like = modules.get(f"{key.removesuffix(name)}{trained}") if key.endswith(f".{name}") else None
        if isinstance(module, nn.Linear) and isinstance(like, nn.Linear):
            module.__class__ = type(like)
