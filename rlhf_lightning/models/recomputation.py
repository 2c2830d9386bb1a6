"""Activation checkpointing: a layer's activations are recomputed in the backward pass instead of being stored."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def recompute_activations(network: Any) -> None:
    """Turn activation checkpointing on. Call `keep_differentiable` once adapters are added."""
    network.activation_checkpointing_enable({"use_reentrant": False})
    network.disable_input_require_grads()


def keep_differentiable(bare: Any) -> None:
    """Let the input embeddings' output require a gradient, as transformers and peft do under checkpointing.

    Their hook is a nested function, which cannot be pickled, so it is removed and replaced with this one.
    """
    bare.disable_input_require_grads()
    try:
        embeddings: nn.Module | None = bare.get_input_embeddings()
    except NotImplementedError:
        return
    if embeddings is not None:
        embeddings.register_forward_hook(_ask_for_gradient)


def _ask_for_gradient(module: nn.Module, given: Any, output: Tensor) -> None:
    output.requires_grad_(True)
