"""Best-of-n against enumeration: its distribution, its KL under the bound, its expected score, and what is sampled."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from rlhf_lightning.evaluation.best_of_n import best_of_n_points, best_places
from rlhf_lightning.functional import best_of_n_kl
from tests.exact.best_of_n import best_of_n_distribution, divergence, measure
from tests.exact.enumerable import World


def enumerated(probabilities: Tensor, scores: Tensor, n: int) -> Tensor:
    """Return the distribution of what `best_places` chooses, over every sequence of n samples."""
    samples = list(product(range(len(scores)), repeat=n))
    flat = [score for each in samples for score in scores[list(each)].tolist()]
    places = torch.tensor(best_places(flat, n))
    chosen = torch.tensor(samples).flatten()[places]
    weights = probabilities[torch.tensor(samples)].prod(dim=1)
    return torch.zeros(len(scores), dtype=torch.float64).index_add_(0, chosen, weights)


@pytest.fixture(scope="module")
def world() -> World:
    return World(length=2)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_the_choice_has_the_exact_distribution_and_a_kl_below_the_bound(world: World, n: int, ties: bool) -> None:
    for logprobs, rewards in zip(world.ref[:3], world.rewards[:3], strict=True):
        probabilities, scores = logprobs.exp(), rewards.round() if ties else rewards
        assert (len(scores.unique()) < len(scores)) == ties
        exact = best_of_n_distribution(probabilities, scores, n)
        torch.testing.assert_close(enumerated(probabilities, scores, n), exact, atol=1e-12, rtol=0)
        kl = divergence(exact, probabilities)
        assert 0 < kl < best_of_n_kl(n)
        if ties:
            untied = divergence(best_of_n_distribution(probabilities, rewards, n), probabilities)
            assert kl < untied


@pytest.mark.parametrize("ties", [False, True])
def test_the_estimate_from_more_samples_is_unbiased(world: World, ties: bool) -> None:
    """Mean over all sequences of 3 samples of the estimate for the best of 2, of both scores."""
    probabilities = world.ref[0].softmax(dim=0)  # they were computed in float32
    proxy, gold = (world.rewards[i].round() if ties else world.rewards[i] for i in (0, 1))
    samples = torch.tensor(list(product(range(len(proxy)), repeat=3)))
    weights = probabilities[samples].prod(dim=1)
    found = [best_of_n_points([proxy[each].tolist()], [gold[each].tolist()], [2])[0] for each in samples]
    exact = best_of_n_distribution(probabilities, proxy, 2)
    for name, scores in (("proxy", proxy), ("held_out", gold)):
        mean = (weights * torch.tensor([getattr(each, name) for each in found], dtype=torch.float64)).sum()
        torch.testing.assert_close(mean, (exact * scores).sum(), atol=1e-12, rtol=0)


def test_the_bound_is_reached_where_no_response_is_probable() -> None:
    gaps = []
    for size in (10, 100, 1000):
        probabilities = torch.full((size,), 1 / size, dtype=torch.float64)
        chosen = best_of_n_distribution(probabilities, torch.arange(size).double(), 4)
        gaps.append(best_of_n_kl(4) - divergence(chosen, probabilities))
    assert gaps[0] > gaps[1] > gaps[2] > 0 and gaps[2] < gaps[0] / 50


def test_what_is_sampled_scores_as_enumerated() -> None:
    found = measure(World(), 4, 250)
    assert abs(found.sampled - found.score) < 4 * found.error
    assert found.score > 10 * found.error and 0 < found.kl < best_of_n_kl(4)
