"""The enumerable world with a cost, and the exact optimum under a limit on it.

With multiplier lambda, PPO-Lagrangian follows the gradient of E[(r - lambda c) / (1 + lambda)] - beta KL(pi || ref),
whose optimum is a tilted reference:

    pi_lambda = ref exp((r - lambda c) / ((1 + lambda) beta)) / Z

Its mean cost falls with lambda. Where it is the limit, no policy with as little KL has more reward at this cost.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.exact.enumerable import World

CORRELATION = 0.5  # between reward and cost: what is rewarded tends to be costly


class CostWorld(World):
    """A world whose responses have costs too, standardised under the reference and correlated with the rewards.

    Attributes:
        costs: [P, N], mean 0 and variance 1 under the reference for every prompt.
    """

    def __init__(self, vocabulary: int = 4, length: int = 3, n_prompts: int = 8, seed: int = 0) -> None:
        super().__init__(vocabulary, length, n_prompts, seed)
        noise = torch.randn(self.ref.shape, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
        costs = CORRELATION * self.rewards + (1 - CORRELATION**2) ** 0.5 * noise
        costs = costs - self.expectation(costs)[:, None]
        self.costs = costs / self.expectation(costs.square())[:, None].sqrt()

    def cost(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        """Return the table of costs as a function over text."""
        return self.looked_up(self.costs, prompts, responses)

    def mean_cost(self, logprobs: Tensor) -> float:
        """Return E[c], mean over prompts."""
        return float(self.expectation(self.costs, logprobs).mean())

    def mean_reward(self, logprobs: Tensor) -> float:
        """Return E[r], mean over prompts."""
        return float(self.expectation(self.rewards, logprobs).mean())

    def tilted(self, multiplier: float, beta: float) -> Tensor:
        """Return log pi_lambda, [P, N]."""
        net = (self.rewards - multiplier * self.costs) / ((1 + multiplier) * beta)
        return (self.ref + net).log_softmax(dim=1)

    def multiplier_for(self, limit: float, beta: float) -> float:
        """Return the multiplier whose optimum costs `limit`, by bisection, since the mean cost falls with it."""
        low, high = 0.0, 100.0
        assert self.mean_cost(self.tilted(high, beta)) < limit < self.mean_cost(self.tilted(low, beta))
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.mean_cost(self.tilted(middle, beta)) > limit else (low, middle)
        return (low + high) / 2

    def lagrangian_regret(self, logprobs: Tensor, multiplier: float, beta: float) -> float:
        """Return the regret of E[(r - lambda c) / (1 + lambda)] - beta KL: 0 at pi_lambda, 1 at the reference."""
        best = self.tilted(multiplier, beta)
        return self.kl(logprobs, best) / self.kl(self.ref, best)
