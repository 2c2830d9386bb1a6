"""ILQL's values by backward enumeration: what they are, and (slow) that training finds them."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.functional import ilql_losses
from tests.exact.enumerable import World
from tests.exact.ilql import EveryAnswer, exact_decoding, exact_values, expectile, train_ilql

BOUND = 0.05  # in standard deviations of the reward


@pytest.mark.parametrize("cql_weight", [0.0, 0.25])
def test_the_loss_is_stationary_at_the_enumerated_values(cql_weight: float) -> None:
    """No small change of any Q or V lowers the expected loss over the data."""
    world, gamma, tau = World(vocabulary=3, length=2, n_prompts=4), 0.9, 0.7
    qs, values = exact_values(world, gamma, tau, cql_weight)
    tables = [q.float().requires_grad_() for q in qs]
    v_tables = [value.float().requires_grad_() for value in values]
    n_prompts, n = world.ref.shape
    first, second = world.responses.T
    rows = torch.arange(n_prompts)[:, None]
    q = torch.stack([tables[0][rows, 0, first], tables[1][rows, first, second]], dim=-1).flatten(0, 1)
    table = [tables[0][rows, 0].expand(-1, n, -1), tables[1][rows, first]]
    chosen = [
        torch.log_softmax(x, -1).gather(2, t.expand(n_prompts, n)[..., None])[..., 0]
        for x, t in zip(table, (first, second), strict=True)
    ]
    logprobs = torch.stack(chosen, dim=-1).flatten(0, 1)
    v = torch.stack([v_tables[0][rows, 0].expand(-1, n), v_tables[1][rows, first]], dim=-1).flatten(0, 1)
    rewards = torch.stack([torch.zeros(n_prompts * n), world.rewards.flatten().float()], dim=-1)
    both = lambda x: torch.stack([x, x])  # noqa: E731
    terms = ilql_losses(
        *(both(q), both(q), v, rewards, both(logprobs), torch.zeros_like(v), torch.ones_like(v)),
        *(gamma, tau),
    )
    loss = (terms.q + terms.value + cql_weight * terms.conservative).sum(dim=1) @ world.ref.exp().flatten().float()
    for gradient in torch.autograd.grad(loss, [*tables, *v_tables]):
        assert float(gradient.abs().max()) < 1e-5
    worse = ilql_losses(
        *(both(q + 0.1), both(q), v, rewards, both(logprobs), torch.zeros_like(v), torch.ones_like(v)), gamma, tau
    )
    assert worse.q.sum() > terms.q.sum() + 0.01


def test_an_expectile_of_one_half_is_the_mean_and_a_high_one_near_the_maximum() -> None:
    q, p = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64), torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    assert float(expectile(q, p, 0.5)) == pytest.approx(0.9)
    assert 2.9 < float(expectile(q, p, 0.999)) < 3.0


def test_the_batch_holds_the_whole_data() -> None:
    world = World(vocabulary=3, length=2, n_prompts=4)
    batch = EveryAnswer(world, 1).batch()
    assert float(batch.weights.sum()) == pytest.approx(4.0, abs=1e-5)
    assert torch.allclose(batch.rewards.sum(dim=1), world.rewards.flatten().float())


def test_the_exact_decoding_policy_is_better_than_the_reference() -> None:
    world = World(seed=0)
    qs, values = exact_values(world, 0.99, 0.7, 0.0)
    decoded = exact_decoding(world, qs, values, 1.0)
    assert torch.allclose(decoded.exp().sum(dim=1), torch.ones(8, dtype=torch.float64))
    assert torch.allclose(exact_decoding(world, qs, values, 0.0), world.ref, atol=1e-5)
    assert 0 < world.regret(decoded, 1.0) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_finds_the_enumerated_values_and_decodes_as_they_would(seed: int) -> None:
    world = World(seed=seed)
    result = train_ilql(world, seed, [1.0, 8.0])
    assert result.q_error < BOUND
    assert result.v_error < BOUND
    for strength, (found, exact) in result.policies.items():
        # Errors of at most e move the log-odds of two tokens by at most 2 strength e: KL per token <= range^2 / 8.
        assert world.kl(found, exact) < (2 * strength * BOUND) ** 2 / 8 * world.length
