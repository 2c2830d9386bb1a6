"""Putting kernels into a network, and reporting which ones it computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlhf_lightning.compat.transformers_names import attention_of
from rlhf_lightning.errors import UserError, key_beside
from rlhf_lightning.kernels import machine
from rlhf_lightning.kernels.fast_products import use_fast_products
from rlhf_lightning.kernels.gated_blocks import keep_less
from rlhf_lightning.kernels.last_layer import read_less
from rlhf_lightning.kernels.norms import use_short_norms
from rlhf_lightning.kernels.packing import register_attention
from rlhf_lightning.kernels.registry import Asked, Circumstances, chosen

# Kernels that replace parts of a network: what installs them, and returns how many parts there were. The others are
# called by `models.forward` for each batch.
_PARTS: dict[str, Callable[[nn.Module], int]] = {
    "last_layer": read_less,
    "gated_blocks": keep_less,
    "fast_products": use_fast_products,
    "norms": use_short_norms,
}


@dataclass(frozen=True)
class InUse:
    """The kernels that a network computes with.

    Args:
        asked: the requested kernels.
        on: names of the active ones.
    """

    asked: Asked
    on: frozenset[str]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a call: another process must also register the packed rows' attention."""
        return _in_use, (self.asked, self.on)


def _in_use(asked: Asked, on: frozenset[str]) -> InUse:
    register_attention()
    return InUse(asked, on)


def use_kernels(
    network: Any, asked: Asked = "auto", *, checkpointing: bool = False, only_fitting: bool = False
) -> InUse:
    """Let a network compute with kernels from now on.

    Args:
        network: a Hugging Face model, with or without adapters in it.
        asked: `auto`, `none` or names, see `registry.read_asked`.
        checkpointing: whether activations are recomputed in the backward pass.
        only_fitting: leave out named kernels that do not fit, as `auto` does.

    Raises:
        UserError: a named kernel does not fit the network or the machine.
    """
    key = key_beside("kernels")
    on = set(chosen(asked, circumstances(network, checkpointing), key, only_fitting))
    for name, put in _PARTS.items():
        if name in on and not put(network):
            if asked != "auto" and not only_fitting:
                raise UserError(f"{key}: {name} fits no part of this {type(network).__name__}; leave it out")
            on.discard(name)
    in_use = InUse(asked, frozenset(on))
    network.kernels_in_use = in_use
    return in_use


def circumstances(network: Any, checkpointing: bool = False) -> Circumstances:
    """Return the properties of a loaded network and this machine that decide which kernels have an effect."""
    config = network.config.get_text_config()
    linear = {module.weight.dtype for module in network.modules() if type(module) is nn.Linear}
    embeddings = network.get_input_embeddings()
    return Circumstances(
        device=machine.device_kind(),
        family=config.model_type,
        attention=attention_of(config),
        weights=str(getattr(embeddings, "weight", torch.empty(0)).dtype).removeprefix("torch."),
        adapter="float32" if torch.float32 in linear else None,
        checkpointing=checkpointing,
        fast_products=machine.onednn_is_faster(),
    )


def kernels_of(network: Any) -> InUse:
    """Return the kernels of a Hugging Face model.

    A model that was not loaded here keeps its own parts; its rows are packed if that is worthwhile, as with `auto`.
    """
    found = getattr(network, "kernels_in_use", None)
    if isinstance(found, InUse):
        return found
    fast = {"fast_products"} if machine.onednn_is_faster() else set()
    return InUse("auto", frozenset({"packing", "row_attention", *fast}))
