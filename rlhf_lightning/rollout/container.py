"""One rollout: prompts, responses and everything PPO computes about them."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlhf_lightning.data import SequenceBatch
from rlhf_lightning.errors import UserError


@dataclass(frozen=True)
class RolloutSettings:
    """How an iteration's responses are collected.

    Args:
        engine: `native` (own sampling loop over the policy's weights).
        max_new_tokens: longest response, in tokens, EOS included.
        temperature: sampling temperature; log-probabilities, KL and ratios are of the tempered policy throughout.
        batch_size: prompts per iteration and process; each gets one response.
        generation_batch_size: prompts decoded at a time; null: all of them.
    """

    engine: str = "native"
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch_size: int = 64
    generation_batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.engine != "native":
            raise UserError(f"rollout.engine: {self.engine!r} is not an engine; allowed: native")
        if self.temperature <= 0:
            raise UserError(f"rollout.temperature: {self.temperature} must be > 0: PPO needs a stochastic policy")


@dataclass
class Rollout:
    """B responses with what is known of each token; all float tensors are float32.

    Prompts are padded on the left, responses on the right. `mask` is 1.0 on valid response tokens, EOS included.
    `denominator` is what a minibatch's masked sums are divided by (see RolloutLoader).
    """

    prompt_ids: Tensor  # [B, P]
    prompt_mask: Tensor  # [B, P]
    response_ids: Tensor  # [B, T]
    mask: Tensor  # [B, T]
    ended: Tensor  # [B] bool
    logprobs: Tensor  # [B, T] nats, of the policy that sampled
    ref_logprobs: Tensor  # [B, T] nats
    values: Tensor  # [B, T]
    scores: Tensor  # [B]
    rewards: Tensor  # [B, T]
    advantages: Tensor  # [B, T]
    returns: Tensor  # [B, T]
    denominator: float = 1.0
    pretraining: SequenceBatch | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: Tensor, denominator: float, pretraining: SequenceBatch | None = None) -> Rollout:
        """The given rows as a minibatch."""
        picked = {f.name: getattr(self, f.name) for f in fields(self)}
        picked = {name: x[rows] if isinstance(x, Tensor) else x for name, x in picked.items()}
        return Rollout(**{**picked, "denominator": denominator, "pretraining": pretraining})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Rollout:
        """The same rollout on another device; dtypes stay as they are, whatever the trainer's precision."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return Rollout(**{name: x.to(device) if hasattr(x, "to") else x for name, x in moved.items()})
