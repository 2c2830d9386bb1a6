"""A scalar on top of a hidden state."""

from __future__ import annotations

from torch import Tensor, nn


class ValueHead(nn.Module):
    """V(s) = w h + b, one number for each hidden state, computed in float32.

    It starts at zero (as in openai/lm-human-preferences, `init_value`), so the first advantages are the returns
    themselves and not the noise of a random head.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values [...] of hidden states [..., H]."""
        return self.linear(hidden.to(self.linear.weight.dtype)).squeeze(-1).float()
