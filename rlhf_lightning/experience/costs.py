"""From responses to the costs that a limit is put on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data import PromptRow
from rlhf_lightning.experience.score_checks import check_scale
from rlhf_lightning.experience.statistics import explained_variance
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rewards import Reward, RewardFunction, as_reward, score_samples
from rlhf_lightning.rollout import Generation, Rollout
from rlhf_lightning.training.recording import Statistics


class CostScorer:
    """Scores the cost of whole responses, in its own unit: nothing is normalised, clipped or shifted.

    Args:
        cost: returns one number per response, higher is worse.
        tokenizer: the policy's.
    """

    def __init__(self, cost: RewardFunction, tokenizer: PreTrainedTokenizerBase) -> None:
        self.given, self.tokenizer = cost, tokenizer

    @property
    def cost(self) -> Reward:
        """Return the cost, with its optional capabilities."""
        return as_reward(self.given)

    def prepare(self, device: torch.device, max_new_tokens: int) -> None:
        """Move the cost's network to the policy's device, and refuse responses that it could not read."""
        self.cost.check_length(max_new_tokens)
        self.cost.to(device)

    def __call__(self, prompts: list[PromptRow], generation: Generation, device: torch.device) -> Tensor:
        """Return the cost of every response, [B].

        Raises:
            UserError: a cost that is too large to learn from.
        """
        responses, ended = generation.responses(), generation.ended.tolist()
        name = self.cost.name or "cost"
        found = score_samples(self.cost, self.tokenizer, prompts, responses, ended, name)
        costs: Tensor = to_device(found, device, torch.float32)
        check_scale(costs, self.cost.key or "cost")
        return costs


def cost_statistics(rollout: Rollout, multiplier: float, everywhere: Callable[[Tensor], Tensor]) -> Statistics:
    """Return the metrics of an iteration's costs; `everywhere` returns the rows [B, T] of all processes."""
    assert rollout.cost_scores is not None and rollout.cost_values is not None and rollout.cost_returns is not None
    n = len(rollout)
    pairs = (rollout.cost_returns, rollout.cost_values, rollout.mask)
    return {
        "cost/scores": (rollout.cost_scores.mean(), n),
        "cost/safe": ((rollout.cost_scores <= 0).float().mean(), n),
        "cost/multiplier": (multiplier, 1.0),
        "cost/explained_variance": (explained_variance(*(everywhere(x) for x in pairs)), 1.0),
    }
