"""From responses to the scores that enter the token rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerState

from rlhf_lightning.data import PromptRow
from rlhf_lightning.experience.part_moments import PartMoments
from rlhf_lightning.experience.reward_shaping import (
    RewardShaping,
    RunningMoments,
    length_penalties,
    per_token,
    shape_scores,
)
from rlhf_lightning.experience.score_checks import ConstantScores, check_scale
from rlhf_lightning.experience.token_scores import placed, refuse_clip
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rewards import Reward, RewardFunction, as_reward, sample_scores, totals
from rlhf_lightning.rewards.protocol import Score
from rlhf_lightning.rollout import Generation, Rollout
from rlhf_lightning.setting_rules import check_lengths
from rlhf_lightning.training.recording import Statistics


class Scorer:
    """Scores responses, and shapes the scores.

    Args:
        reward: scores the responses.
        tokenizer: the policy's.
        shaping: how the scores are shaped.
    """

    def __init__(self, reward: RewardFunction, tokenizer: PreTrainedTokenizerBase, shaping: RewardShaping) -> None:
        self.given, self.tokenizer, self.shaping, self.moments = reward, tokenizer, shaping, RunningMoments()
        self.part_moments, self._constant = PartMoments(), ConstantScores()
        self._max_new_tokens: int | None = None
        self._placed: Tensor | None = None
        self._penalties: dict[str, Tensor] = {}
        self._trainer: Any = None

    @property
    def reward(self) -> Reward:
        """Return the reward, with its optional capabilities."""
        return as_reward(self.given)

    @property
    def key(self) -> str:
        """Return the key that named the reward, for messages."""
        return self.reward.key or "reward"

    @property
    def parts(self) -> Mapping[str, Sequence[Score]]:
        """Return the last scores of each part of a reward that is a sum."""
        return self.reward.parts

    @property
    def per_token(self) -> bool:
        """Return whether the last scores were numbers per token."""
        return self._placed is not None

    @property
    def statistics(self) -> Statistics:
        """Return the means of the reward's further numbers and of the length penalties, and of how many responses."""
        found = {f"reward/{name}": (sum(each) / len(each), len(each)) for name, each in self.reward.figures.items()}
        return found | {f"objective/{name}": (each.mean(), len(each)) for name, each in self._penalties.items()}

    @property
    def extras(self) -> Mapping[str, Sequence[Any]]:
        """Return further columns of the last scores, for the table of samples."""
        return self.reward.extras

    def prepare(self, device: torch.device, max_new_tokens: int, trainer: Any) -> None:
        """Move the reward's network to the policy's device, and refuse responses that it could not read."""
        self._trainer = trainer
        check_lengths(vars(self.shaping), max_new_tokens)
        self._max_new_tokens = max_new_tokens
        self.reward.check_length(max_new_tokens)
        self.reward.to(device)

    def __call__(self, prompts: list[PromptRow], generation: Generation, device: torch.device) -> Tensor:
        """Return the reward of every response [B], the sum over its tokens, before it is shaped."""
        ended = generation.ended.tolist()
        state = None if self._trainer is None else _trainer_state(self._trainer)
        result = sample_scores(self.reward, self.tokenizer, prompts, generation.responses(), ended, state=state)
        scores = totals(result)
        self._constant.look(scores, self.key)
        self._placed = placed(result, generation.mask)
        return to_device(scores, device, torch.float32)

    def shape(self, scores: Tensor, rollout: Rollout, everywhere: Callable[[Tensor], Tensor]) -> Tensor:
        """Normalise, clip, and subtract the penalties; `everywhere` returns the scores of all processes.

        Numbers per token of the last call become the rollout's `token_scores`, on the scale of the shaped scores.

        Raises:
            UserError: a score that is too large to learn from.
        """
        lengths, tokens = rollout.mask.sum(dim=1), self._placed
        if parts := self.reward.normalized:
            scores, tokens = self.part_moments.combine(parts, rollout.mask, everywhere)
        scores = per_token(scores, lengths, self.shaping)
        if self.shaping.normalize:
            self.moments.update(everywhere(scores).flatten())
        shaped = shape_scores(scores, rollout.ended, lengths, self.shaping, self.moments, self._max_new_tokens)
        self._penalties = length_penalties(lengths, self.shaping, self._max_new_tokens)
        check_scale(shaped, self.key)
        if tokens is not None:
            refuse_clip(self.shaping.clip, self.key)
            scaled = per_token(tokens, lengths.unsqueeze(1), self.shaping)
            rollout.token_scores = scaled / (self.moments.std if self.shaping.normalize else 1.0)
            check_scale(rollout.token_scores, self.key)
        return shaped


def _trainer_state(trainer: Any) -> TrainerState:
    """Return a run's progress in the form that a TRL reward function reads: steps are optimiser steps."""
    steps = trainer.estimated_stepping_batches
    return TrainerState(
        epoch=float(trainer.current_epoch),
        global_step=trainer.global_step,
        max_steps=int(steps) if steps < float("inf") else -1,
        num_train_epochs=trainer.max_epochs or 0,
    )
