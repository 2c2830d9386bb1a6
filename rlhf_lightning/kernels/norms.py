"""RMS norms with an explicit backward pass.

    y = w x r,   r = (mean(x^2) + eps)^(-1/2),   over the last dimension

autograd goes back through the seven operations of transformers' implementation one by one, and stores the normalised
states for the weight. Written out (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467), with x' = x r and
g' = g w,

    dx = r (g' - x' mean(g' x')),   dw = sum over tokens of g x'

it takes fewer operations and stores only x, which the residual connection stores already.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rlhf_lightning.kernels.families import is_part, mix_in


def use_short_norms(network: nn.Module) -> int:
    """Give the network's norms this backward pass, if they have this form. Return how many have it.

    Not Gemma's norms, which multiply by 1 + w; their epsilon has another name.
    """
    norms = [
        module for module in network.modules() if is_part(module, "RMSNorm") and hasattr(module, "variance_epsilon")
    ]
    for norm in norms:
        mix_in(ShortNorm, norm)
    return len(norms)


class ShortNorm(nn.Module):
    """Mixed into a norm's class. Dtypes other than float32 are unaffected."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return y of x, both [..., H]."""
        if hidden_states.dtype == self.weight.dtype == torch.float32:
            normed: Tensor = RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)
            return normed
        whole: Tensor = super().forward(hidden_states)
        return whole


class RMSNorm(torch.autograd.Function):
    """y of x [..., H], weight [H] and epsilon, with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.epsilon = epsilon
        return nn.functional.rms_norm(x, weight.shape, weight, epsilon)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        width = x.shape[-1]
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(width).add_(ctx.epsilon).rsqrt_()
        normed, of_normed = x * scale, gradient * weight
        of_weight = (gradient * normed).flatten(0, -2).sum(dim=0) if ctx.needs_input_grad[1] else None
        along = torch.linalg.vecdot(of_normed, normed).div_(-width).unsqueeze(-1)
        return of_normed.addcmul_(normed, along).mul_(scale), of_weight, None
