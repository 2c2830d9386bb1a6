"""Values by backward enumeration compared with GAE over every response."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_lightning.functional import generalized_advantage_estimate, kl_estimate, token_rewards
from tests.exact.enumerable import World

BETA = 0.3


class Case:
    """Every response of a random policy, with its token rewards and the exact values."""

    def __init__(self) -> None:
        self.world = World()
        ref = World(seed=0).token_logprobs(self.world.load_model()).detach()
        policy = World(seed=1).load_model()  # another random network
        self.tokens = self.world.token_logprobs(policy).detach()
        flat, mask = self.tokens.flatten(0, 1), torch.ones(self.world.rewards.numel(), self.world.length)
        kl = kl_estimate(flat, ref.flatten(0, 1))
        self.mask, self.rewards = mask, token_rewards(self.world.rewards.flatten().float(), kl, mask, BETA)
        self.values = self.world.values(self.tokens, self.rewards.view_as(self.tokens))

    def gae(self, values: Tensor, lam: float) -> tuple[Tensor, Tensor]:
        """Return advantages and returns [P, N, T] of every response."""
        out = generalized_advantage_estimate(self.rewards, values.flatten(0, 1).float(), self.mask, lam=lam)
        return out[0].view_as(self.tokens), out[1].view_as(self.tokens)

    def expected(self, x: Tensor, known: int) -> Tensor:
        """Return the mean of x [P, N] over responses that share their first `known` tokens, [P, V^known]."""
        groups = (len(self.world.prompts), self.world.vocabulary**known, -1)
        weights = self.tokens.double().sum(dim=2).exp().view(groups)
        return (weights * x.view(groups)).sum(dim=2) / weights.sum(dim=2)


@pytest.fixture(scope="module")
def case() -> Case:
    return Case()


def test_lambda_one_returns_are_the_values_on_average(case: Case) -> None:
    """With lambda = 1 a return is the Monte Carlo sum of rewards, whatever the values are."""
    for values in (torch.zeros_like(case.values), torch.randn(case.values.shape)):
        _, returns = case.gae(values, lam=1.0)
        for t in range(case.world.length):
            exact = case.values[:, :: case.world.vocabulary ** (case.world.length - t), t]
            assert torch.allclose(case.expected(returns[:, :, t], t), exact, atol=1e-5)


def test_the_first_value_is_the_objective_of_the_prompt(case: Case) -> None:
    objective = case.world.objective(case.tokens.double().sum(dim=2), BETA)
    assert float(case.values[:, 0, 0].mean()) == pytest.approx(objective, abs=1e-5)


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_with_true_values_advantages_are_right_on_average_for_every_lambda(case: Case, lam: float) -> None:
    advantages, _ = case.gae(case.values, lam)
    one_step, _ = case.gae(case.values, 0.0)
    assert float(one_step.abs().max()) > 0.5
    for t in range(case.world.length):
        of_state, of_action = (case.expected(advantages[:, :, t], known) for known in (t, t + 1))
        assert float(of_state.abs().max()) < 1e-5
        assert torch.allclose(of_action, case.expected(one_step[:, :, t], t + 1), atol=1e-5)


def test_with_wrong_values_lambda_below_one_is_biased(case: Case) -> None:
    advantages, _ = case.gae(torch.zeros_like(case.values), lam=0.5)
    one_step, _ = case.gae(case.values, 0.0)
    difference = case.expected(advantages[:, :, 0], 1) - case.expected(one_step[:, :, 0], 1)
    assert float((difference - difference.mean(dim=1, keepdim=True)).abs().max()) > 0.05
