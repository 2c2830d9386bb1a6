"""The engine's samples compared with the enumerated distribution, and KL estimates with the enumerated KL."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlhf_lightning.data import left_pad
from rlhf_lightning.functional import kl_estimate
from rlhf_lightning.models import response_logprobs
from rlhf_lightning.rollout import Generation, NativeEngine, SamplingSettings, seeded_generator
from tests.exact.enumerable import World

SAMPLES = 512  # per prompt


@dataclass
class Samples:
    world: World
    generation: Generation
    policy: Tensor  # [B, T] log-probabilities, recomputed
    ref: Tensor  # [B, T]
    exact_policy: Tensor  # [P, N]
    exact_ref: Tensor  # [P, N]

    @property
    def number(self) -> Tensor:
        """Return which of the N responses each sample is, [P, SAMPLES]."""
        digits = self.world.vocabulary ** torch.arange(self.world.length).flip(0)
        return (self.generation.tokens * digits).sum(dim=1).view(-1, SAMPLES)


@pytest.fixture(scope="module", params=[1.0, 0.7], ids=["temperature 1", "temperature 0.7"])
def samples(request: pytest.FixtureRequest) -> Samples:
    """Return samples of one random network, with another one as reference."""
    world, temperature = World(), request.param
    policy, ref = World(seed=1).load_model(), world.load_model()
    engine = NativeEngine(pad_id=world.vocabulary, eos_ids=[world.vocabulary])
    engine.sync(policy)
    prompts = [prompt for prompt in world.prompts for _ in range(SAMPLES)]
    settings = SamplingSettings(max_new_tokens=world.length, temperature=temperature)
    generation = engine.generate(prompts, settings, seeded_generator("cpu", "exact"))
    tokens = (*left_pad(prompts, world.vocabulary), generation.tokens, generation.mask)
    with torch.no_grad():
        logprobs = [response_logprobs(model, *tokens, temperature=temperature) for model in (policy, ref)]
    return Samples(world, generation, *logprobs, *(world.logprobs(model, temperature) for model in (policy, ref)))


def test_every_response_runs_to_the_length_limit(samples: Samples) -> None:
    assert samples.generation.tokens.shape == (len(samples.world.prompts) * SAMPLES, samples.world.length)
    assert bool((samples.generation.mask == 1).all())
    assert not bool(samples.generation.ended.any())


def test_log_probabilities_of_the_engine_and_of_the_update_are_the_enumerated_ones(samples: Samples) -> None:
    exact = samples.exact_policy.gather(1, samples.number).flatten()
    for logprobs in (samples.generation.logprobs, samples.policy):
        assert float((logprobs.double().sum(dim=1) - exact).abs().max()) < 1e-5


def test_responses_come_as_often_as_their_probability_says(samples: Samples) -> None:
    """Pearson's statistic has mean P (N - 1); rare responses make its variance larger than chi-squared's."""
    probability = samples.exact_policy.exp()
    counts = torch.zeros_like(probability).scatter_add(1, samples.number, torch.ones(samples.number.shape).double())
    expected = SAMPLES * probability
    statistic = float(((counts - expected).square() / expected).sum())
    n = len(samples.world.responses)
    mean = len(samples.world.prompts) * (n - 1)
    variance = float((2 * (n - 1) + ((1 / probability).sum(dim=1) - n**2 - 2 * n + 2) / SAMPLES).sum())
    assert abs(statistic - mean) < 3 * variance**0.5


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_sampled_kl_is_the_enumerated_kl(samples: Samples, kind: str) -> None:
    exact = samples.world.kl(samples.exact_policy, samples.exact_ref)
    sampled = kl_estimate(samples.policy, samples.ref, kind).sum(dim=1).double().view(-1, SAMPLES)
    # Prompts are strata with equally many samples each: the variance of the mean is that within prompts.
    standard_error = float(sampled.var(dim=1).mean() / sampled.numel()) ** 0.5
    assert standard_error < 0.1 * exact
    assert abs(float(sampled.mean()) - exact) < 3 * standard_error
