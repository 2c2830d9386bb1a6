"""The closed form itself, against which the other tests measure."""

from __future__ import annotations

import pytest
import torch

from tests.exact.enumerable import World


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def random_policies(world: World, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(world.ref.shape, generator=generator, dtype=torch.float64) for _ in range(count)]
    return [(world.ref + 2 * x).log_softmax(dim=1) for x in noise]


def test_the_reference_is_a_distribution_and_rewards_are_standardised_under_it(world: World) -> None:
    ones = torch.ones(len(world.prompts), dtype=torch.float64)
    assert torch.allclose(world.expectation(torch.ones_like(world.ref)), ones, atol=1e-6)
    assert torch.allclose(world.expectation(world.rewards), 0 * ones, atol=1e-6)
    assert torch.allclose(world.expectation(world.rewards.square()), ones, atol=1e-6)


def test_prompts_share_no_state_with_each_others_responses(world: World) -> None:
    texts = [world.text(prompt) for prompt in world.prompts]
    assert len(set(texts)) == len(texts)
    assert not any(a != b and b.startswith(a) for a in texts for b in texts)
    assert len({len(prompt) for prompt in world.prompts}) == 2  # so that rows are padded


@pytest.mark.parametrize("beta", [0.1, 0.3, 1.0])
def test_the_gap_to_the_best_objective_is_beta_times_the_kl_to_the_optimum(world: World, beta: float) -> None:
    optimum = world.optimum(beta)
    for policy in [world.ref, *random_policies(world, 5)]:
        gap = world.best_objective(beta) - world.objective(policy, beta)
        assert gap == pytest.approx(beta * world.kl(policy, optimum), abs=1e-6)
        assert gap > 0.1
    assert world.objective(optimum, beta) == pytest.approx(world.best_objective(beta), abs=1e-6)


def test_regret_is_one_at_the_reference_and_zero_at_the_optimum(world: World) -> None:
    assert world.regret(world.ref, 0.3) == pytest.approx(1.0)
    assert world.regret(world.optimum(0.3), 0.3) == pytest.approx(0.0, abs=1e-6)
    assert world.regret(world.optimum(1.0), 0.3) > 0.01


def test_the_network_can_represent_any_policy(world: World) -> None:
    """All its states differ: two prefixes with equal hidden states would be bound to equal distributions."""
    tokens = world.token_logprobs(world.load_model()).detach()
    first, step = tokens[:, :, -1], world.vocabulary
    states = first.reshape(-1, step)  # the last token's distribution in every state of the last position
    distances = torch.cdist(states, states) + torch.eye(len(states))
    assert float(distances.min()) > 1e-6


def test_the_reward_function_reads_the_table_by_text(world: World) -> None:
    prompts = [world.text(prompt) for prompt in world.prompts for _ in world.responses]
    responses = [world.text(response) for response in world.responses.tolist()] * len(world.prompts)
    assert torch.equal(torch.tensor(world.reward(prompts, responses)), world.rewards.flatten().float())
