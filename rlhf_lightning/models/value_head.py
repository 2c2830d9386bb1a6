"""A scalar on top of a hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rlhf_lightning.models.precision import Float32Linear


class ValueHead(nn.Module):
    """V(s) = w h + b, one number per hidden state, computed in float32.

    It starts at zero (as in openai/lm-human-preferences, `init_value`), so the first advantages are the returns
    themselves rather than the noise of a random head.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = Float32Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return values [...] of hidden states [..., H]."""
        values: Tensor = self.linear(hidden)
        return values.squeeze(-1)
