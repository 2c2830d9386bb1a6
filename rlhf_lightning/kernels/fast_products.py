"""Float32 matrix products on CPUs for which torch's own library has no fast ones.

torch computes float32 products on x86 with MKL, which uses only AVX2 on AMD's processors. oneDNN, which torch also
ships, has AVX-512 kernels for them: on two Zen 5 cores, 450 GFLOP/s where MKL gives 220. So there the linear layers of
a loaded model use oneDNN. Only the library changes: dtype, weights, names and checkpoints stay, and the results are the
same up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_lightning.compat.torch_names import onednn_layout
from rlhf_lightning.compat.torch_names import onednn_linear as _linear
from rlhf_lightning.kernels import machine

# With fewer multiplications, or fewer rows, calling oneDNN costs more than it saves.
SMALLEST = 2**22
SMALLEST_PACKED = 2**15  # weights
FEWEST_ROWS = 16
# Large numbers of rows are padded to a multiple of this, so that there are fewer shapes.
ROWS = 32


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right of two matrices, by the faster library on this machine."""
    return product_by_onednn(left, right) if machine.onednn_is_faster() else left @ right


def product_by_onednn(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right of two matrices, by oneDNN if they have its dtype."""
    asks = left.is_cpu and left.dtype == right.dtype == torch.float32
    return _linear(left, right.T) if asks else left @ right


def rows_to_add(rows: int) -> int:
    """Return how many rows to add so that products come in fewer shapes."""
    return -rows % ROWS if rows >= 8 * ROWS else 0


def use_fast_products(network: nn.Module) -> int:
    """Let the network's linear layers use oneDNN, except subclasses such as 4-bit layers; return how many do."""
    layers = [module for module in network.modules() if type(module) is nn.Linear]
    for layer in layers:
        layer.__class__ = FastLinear
    return len(layers)


@contextlib.contextmanager
def packed_weights(network: nn.Module, rows: int) -> Iterator[None]:
    """Let products without gradients, of about `rows` rows, read copies of the weights in oneDNN's own layout.

    With few rows, as in decoding, a product takes about as long as reading its weights, and oneDNN reads these copies
    faster than the weights themselves. They are made on entry and freed on exit, and take as many bytes as the network.
    """
    layers = [module for module in network.modules() if isinstance(module, FastLinear) and worth_packing(module)]
    try:
        for layer in layers:
            layer.packed = onednn_layout(layer.weight.detach(), rows)
        yield
    finally:
        for layer in layers:
            layer.packed = None


def worth_packing(layer: nn.Linear) -> bool:
    """Return whether `packed_weights` copies this layer."""
    weight = layer.weight
    return (
        weight.numel() >= SMALLEST_PACKED
        and weight.dtype == torch.float32
        and weight.is_cpu
        and type(weight) is nn.Parameter
        and not torch.is_autocast_enabled("cpu")
    )


class FastLinear(nn.Linear):
    """A linear layer that computes large float32 products on a CPU with oneDNN."""

    packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Return y = x W^T + b."""
        if self.packed is not None and input.dtype == torch.float32 and not torch.is_grad_enabled():
            return _linear(input, self.packed, self.bias)
        if suits(input, self.weight):
            product: Tensor = Product.apply(input, self.weight, self.bias)
            return product
        return super().forward(input)


def suits(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN computes this product faster."""
    rows = x.numel() // max(1, x.shape[-1])
    return (
        rows >= FEWEST_ROWS
        and rows * weight.numel() >= SMALLEST
        and x.dtype == weight.dtype == torch.float32
        and x.is_cpu
        and type(weight) is nn.Parameter  # not a sharded weight
        and not torch.is_autocast_enabled("cpu")
    )


class Product(torch.autograd.Function):
    """y = x W^T + b with x [..., in], W [out, in], b [out] or None, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wanted, rows = ctx.needs_input_grad, gradient.reshape(-1, gradient.shape[-1])
        of_x = _linear(rows, weight.T).view(*gradient.shape[:-1], -1) if wanted[0] else None
        of_weight = _of_weight(rows, x.reshape(-1, x.shape[-1])) if wanted[1] else None
        return of_x, of_weight, rows.sum(dim=0) if wanted[2] else None


def _of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """Return G^T X, [out, in]. oneDNN copies the transposed left factor, so the narrower of the two goes left."""
    if gradient.shape[1] > x.shape[1]:
        return _linear(x.T, gradient.T).T
    return _linear(gradient.T, x.T)
