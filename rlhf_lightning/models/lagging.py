"""A lagging copy of a policy: the weights that are trained, as they were some iterations ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class LaggingPolicy:
    """The policy with the trained weights of the last refresh; what is frozen, in 4 bits too, is shared.

    It is not an nn.Module: the copy is neither a parameter of the run nor moved by a strategy. Its `state_dict` belongs
    in checkpoints, since nothing else can bring it back.

    Args:
        policy: the network, or an adapter on it.
    """

    def __init__(self, policy: nn.Module) -> None:
        self.policy, self._caller = policy, _Caller(policy)
        self.weights: dict[str, Tensor] = {}
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over the policy's current weights."""
        trained = ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)
        self.weights = {name: parameter.detach().clone() for name, parameter in trained}

    def __call__(self, function: Callable[[], Any]) -> Any:
        """Return `function()`, within which the policy has the copy's weights."""
        device = next(self.policy.parameters()).device
        self.weights = {name: weight.to(device) for name, weight in self.weights.items()}
        return functional_call(self._caller, {f"policy.{name}": w for name, w in self.weights.items()}, (function,))

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.weights)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if set(state) != set(self.weights):
            raise ValueError(f"the lagging copy has weights {sorted(self.weights)}, and the state {sorted(state)}")
        self.weights = {name: weight.clone() for name, weight in state.items()}


class _Caller(nn.Module):
    """Calls a function while its parameters are replaced."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()
