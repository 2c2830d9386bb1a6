"""Gated feed-forward blocks that store less for the backward pass.

    y = W_down (act(W_gate x) * W_up x)

autograd stores four tensors as wide as the block: gate, up, act(gate) and the product of the latter two, which W_down
reads. The last two are elementwise functions of the others, so they are recomputed here in the backward pass: half the
memory of the widest part of a network for two elementwise operations. Values and gradients are bitwise the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from rlhf_lightning.compat.torch_names import storage_key
from rlhf_lightning.kernels.families import is_part

Made = tuple[Tensor, Callable[[], Tensor]]


def keep_less(network: nn.Module) -> int:
    """Let gated blocks recompute their elementwise parts in the backward pass; return how many do.

    Not for networks under activation checkpointing, which does not store a layer's tensors and has its own hooks.
    """
    blocks = [module for module in network.modules() if is_part(module, "MLP")]
    for block in blocks:
        block.__class__ = GatedMLP
    return len(blocks)


class GatedMLP(nn.Module):
    """A transformers block with this forward pass instead of its own; names and weights stay."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Return y of x, both [..., H]."""
        if not torch.is_grad_enabled():
            unkept: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
            return unkept
        gate, up = self.gate_proj(x), self.up_proj(x)
        act, of_gate, of_up = self.act_fn, gate.detach(), up.detach()
        made: list[Made] = []  # kept alive, so that no other tensor is mistaken for one of them
        again: list[Tensor] = []  # act(gate), recomputed for the product, which the backward pass needs first

        def activate() -> Tensor:
            return again.pop() if again else act(of_gate)

        def multiply() -> Tensor:
            again[:] = [act(of_gate)]
            return again[0] * of_up

        def pack(saved: Tensor) -> Tensor | Callable[[], Tensor]:
            for tensor, make in made:
                if _same(saved, tensor):
                    shape = saved.shape  # a linear layer may store a view
                    return lambda: make().view(shape)
            return saved

        with saved_tensors_hooks(pack, _unpack):
            activated = act(gate)
            made.append((activated, activate))
            product = activated * up
            made.append((product, multiply))
            out: Tensor = self.down_proj(product)
        made.clear()
        return out


def _same(saved: Tensor, made: Tensor) -> bool:
    whole = saved.numel() == made.numel() and saved.is_contiguous()
    return whole and storage_key(saved) == storage_key(made)


def _unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        return kept()
