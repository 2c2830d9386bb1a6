"""One rollout: prompts, responses and everything computed about them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_lightning.data import SequenceBatch
from rlhf_lightning.data.batches import Batch
from rlhf_lightning.rollout.engine import SamplingSettings
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Temperature


@checked("rollout")
@dataclass(frozen=True)
class RolloutSettings:
    """How an iteration's responses are collected.

    Args:
        engine: `native` (a sampling loop over the policy's own weights).
        max_new_tokens: longest response in tokens, including EOS.
        temperature: sampling temperature; log-probabilities, KL and ratios always refer to the tempered policy.
        batch_size: prompts per iteration and process.
        generation_batch_size: prompts decoded at a time, with all their responses; null: all of them.
        samples_per_prompt: responses to each prompt, adjacent in the rollout.
    """

    engine: Literal["native"] = "native"
    max_new_tokens: Count = 64
    temperature: Temperature = 1.0
    batch_size: Count = 64
    generation_batch_size: Count | None = None
    samples_per_prompt: Count = 1

    @property
    def responses(self) -> int:
        """Return the number of responses per iteration and process."""
        return self.batch_size * self.samples_per_prompt

    @property
    def sampling(self) -> SamplingSettings:
        """Return the sampling settings of a response."""
        return SamplingSettings(self.max_new_tokens, self.temperature)

    @property
    def responses_at_once(self) -> int | None:
        """Return the number of responses decoded at a time; None: all of them."""
        prompts = self.generation_batch_size
        return None if prompts is None else prompts * self.samples_per_prompt


class Rollout(Batch):
    """B responses with what is known about each token; all float tensors are float32, whatever the trainer's precision.

    Prompts are padded on the left, responses on the right. The responses to one prompt are adjacent.

    Attributes:
        prompt_ids, prompt_mask: [B, P].
        response_ids, mask: [B, T]; `mask` is 1.0 on valid response tokens, including EOS.
        ended: [B] bool, whether the response produced an EOS.
        logprobs, ref_logprobs: [B, T] in nats, of the sampling policy and of the reference.
        values: [B, T]; None without a critic.
        scores: [B], as they enter the token rewards.
        token_scores: [B, T], the part of them that belongs to certain tokens, shaped; None: all is at the last token.
        rewards, advantages: [B, T].
        returns: [B, T], the critic's targets; None without a critic.
        allowed: [B, T, ceil(V / 8)] uint8, the tokens that could be sampled, as bits; None: all.
        cost_scores, cost_values, cost_returns: [B], [B, T] and [B, T], the same for a cost; None without one.
        learned: [B], 1.0 on responses that count in the loss and in its divisors, 0.0 on the others.
        denominator: divisor of a minibatch's masked sums (see RolloutLoader).
        responses: divisor of sums over responses.
        pretraining: the minibatch's PPO-ptx rows, if any.
        per_response: losses and statistics are means over responses rather than over tokens.
    """

    def __init__(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        response_ids: Tensor,
        mask: Tensor,
        ended: Tensor,
        logprobs: Tensor,
        ref_logprobs: Tensor,
        values: Tensor | None,
        scores: Tensor,
        rewards: Tensor,
        advantages: Tensor,
        returns: Tensor | None,
    ) -> None:
        self.prompt_ids, self.prompt_mask = prompt_ids, prompt_mask
        self.response_ids, self.mask, self.ended = response_ids, mask, ended
        self.logprobs, self.ref_logprobs, self.values = logprobs, ref_logprobs, values
        self.scores, self.rewards, self.advantages, self.returns = scores, rewards, advantages, returns
        self.allowed: Tensor | None = None
        self.cost_scores: Tensor | None = None
        self.cost_values: Tensor | None = None
        self.cost_returns: Tensor | None = None
        self.learned = torch.ones_like(scores)
        self.denominator, self.responses, self.per_response = 1.0, float(len(scores)), False
        self.pretraining: SequenceBatch | None = None
        self.token_scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: Tensor, denominator: float, pretraining: SequenceBatch | None = None) -> Rollout:
        """Return the given rows as a minibatch."""
        picked = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(picked, name, value[rows])
        picked.denominator, picked.pretraining = denominator, pretraining
        return picked

    @property
    def share(self) -> Tensor:
        """Return the factor that turns a loss over `denominator` back into a mean over this batch's tokens."""
        return (self.responses if self.per_response else self.denominator) / self.weight.clamp(min=1)

    @property
    def weight(self) -> Tensor:
        """Return what this batch counts in a mean: its tokens, or its responses, that are learned from."""
        return self.learned.sum() if self.per_response else self.loss_mask.sum()

    @property
    def loss_mask(self) -> Tensor:
        """Return `mask` without the responses that do not count in the loss, [B, T]."""
        return self.mask * self.learned.unsqueeze(1)

    @property
    def lengths(self) -> Tensor:
        """Return the tokens of every row, [B], prompt and response."""
        return (self.prompt_mask.sum(dim=1) + self.mask.sum(dim=1)).long()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Rollout:
        """Return the same rollout on another device; dtypes stay."""
        moved = super().to(device, non_blocking)
        if self.pretraining is not None:
            moved.pretraining = self.pretraining.to(device, non_blocking)
        return moved
