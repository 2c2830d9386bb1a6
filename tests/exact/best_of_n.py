"""The exact distribution of best-of-n, from which KL and expected score follow, and what is sampled."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lightning.data import PromptRow
from rlhf_lightning.evaluation.sampling import BestOf, sample_responses
from rlhf_lightning.rollout import SamplingSettings
from tests.exact.enumerable import World


def best_of_n_distribution(probabilities: Tensor, scores: Tensor, n: int) -> Tensor:
    """Return the distribution of the best of n samples, [N], the first of those with the highest score.

        P(y) = pi(y) / pi(s = s_y) * (pi(s <= s_y)^n - pi(s < s_y)^n)

    since the best has a score of at most s_y with probability pi(s <= s_y)^n, and equal scores are chosen by order.
    """
    at_most = (probabilities[None] * (scores[None] <= scores[:, None])).sum(dim=1)
    below = (probabilities[None] * (scores[None] < scores[:, None])).sum(dim=1)
    return probabilities / (at_most - below) * (at_most**n - below**n)


def divergence(chosen: Tensor, probabilities: Tensor) -> float:
    """Return KL(chosen || probabilities) in nats."""
    return float((chosen * (chosen / probabilities).log()).sum())


@dataclass(frozen=True)
class Measured:
    """Exact KL and expected score of best-of-n, means over prompts, and the mean score of samples with its error."""

    kl: float
    score: float
    sampled: float
    error: float


def measure(world: World, n: int, times: int, seed: int = 0) -> Measured:
    """Return what is exact, and what `times` answers to each prompt score."""
    table = {
        (prompt, world.text(response)): reward
        for prompt, rewards in zip(map(world.text, world.prompts), world.rewards.tolist(), strict=True)
        for response, reward in zip(world.responses.tolist(), rewards, strict=True)
    }

    def score(prompts: list[str], responses: list[str], **columns: list[object]) -> list[float]:
        return [table[prompt, text.strip()] for prompt, text in zip(prompts, responses, strict=True)]

    rows = [PromptRow(prompt, world.text(prompt), {}) for prompt in world.prompts for _ in range(times)]
    settings, best = SamplingSettings(world.length), BestOf(n, score)
    tokenizer = world.tokenizer
    found = sample_responses(world.load_model(), tokenizer, rows, settings, batch_size=10_000, seed=seed, best=best)
    scores = torch.tensor(score([row.text for row in rows], [each.text for each in found]))
    exact = [(ref.softmax(dim=0), rewards) for ref, rewards in zip(world.ref, world.rewards, strict=True)]
    chosen = [best_of_n_distribution(probabilities, rewards, n) for probabilities, rewards in exact]
    kls = [divergence(one, probabilities) for one, (probabilities, _) in zip(chosen, exact, strict=True)]
    means = [float((one * rewards).sum()) for one, (_, rewards) in zip(chosen, exact, strict=True)]
    error = float(scores.std()) / len(scores) ** 0.5
    return Measured(sum(kls) / len(kls), sum(means) / len(means), float(scores.mean()), error)
