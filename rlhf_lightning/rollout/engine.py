"""The protocol of rollout engines, which generate responses, and the sampling settings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SamplingSettings:
    """How to sample responses.

    Args:
        max_new_tokens: longest response in tokens, including EOS.
        temperature: divides the logits; 0 takes the most likely token.
        top_k, top_p: filters for evaluation and chat; PPO refuses them, because its ratios use the full distribution.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def filters(self) -> bool:
        """Return whether tokens are filtered out before one is sampled."""
        return self.top_k > 0 or self.top_p < 1.0


@dataclass
class Generation:
    """Responses of B prompts, padded on the right to the longest one, T tokens.

    `logprobs` are those of the tempered, unfiltered distribution, in nats, 0 outside the mask. `mask` is 1.0 on valid
    tokens, including the EOS. `ended` says which responses produced an EOS. `values`, if the engine was given a value
    head, are those of the states that the tokens are sampled from, 0 outside the mask. `allowed`, if the engine was
    restricted, are the tokens that could be sampled, as bits; `logprobs` are then renormalised over them.
    """

    tokens: Tensor  # [B, T] long
    mask: Tensor  # [B, T] float
    logprobs: Tensor  # [B, T] float32
    ended: Tensor  # [B] bool
    values: Tensor | None = None  # [B, T] float32
    allowed: Tensor | None = None  # [B, T, ceil(V / 8)] uint8

    def responses(self) -> list[list[int]]:
        """Return the valid token ids of every response, including EOS."""
        return token_rows(self.tokens, self.mask)

    def select(self, rows: list[int]) -> Generation:
        """Return these rows."""
        values = None if self.values is None else self.values[rows]
        return Generation(self.tokens[rows], self.mask[rows], self.logprobs[rows], self.ended[rows], values)


def token_rows(tokens: Tensor, mask: Tensor) -> list[list[int]]:
    """Return the valid tokens of every row [B, T], read from the device in one transfer."""
    rows = torch.where(mask.bool(), tokens, -1).tolist()
    return [[token for token in row if token >= 0] for row in rows]


class RolloutEngine(Protocol):
    """Anything that turns prompts into responses with the policy's current weights.

    These two methods are enough; a class that can do more is an `Engine`.
    """

    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """Sample one response for each of the prompts (token ids, no padding).

        A prompt that gets several responses is repeated, in adjacent positions.
        """
        ...

    def sync(self, model: nn.Module) -> None:
        """Take over the policy's weights; called before every collection."""
        ...


class Engine:
    """An engine with optional capabilities. Each method has a default: override what differs."""

    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """Sample (see RolloutEngine)."""
        raise NotImplementedError

    def sync(self, model: nn.Module) -> None:
        """Take over the policy's weights."""
        raise NotImplementedError

    def keep(self, value_head: nn.Module | None) -> bool:
        """Return whether its log-probabilities are computed as the trainer computes them.

        If so, it also keeps this head's values of the states that tokens are sampled from; None: no values.
        """
        return False

    def restrict(self, mask: Any) -> bool:
        """Return whether it samples only the tokens that a `TopPMask` allows from now on, and returns the masks."""
        return False

    def close(self) -> None:
        """Release what it holds; called when a run ends. The next `sync` starts it again."""


def as_engine(engine: RolloutEngine) -> Engine:
    """Return the engine itself if it is an `Engine`; else a wrapper, which calls its `close` if there is one."""
    return engine if isinstance(engine, Engine) else _Plain(engine)


class _Plain(Engine):
    """An engine that has `generate` and `sync`, and perhaps `close`."""

    def __init__(self, given: RolloutEngine) -> None:
        self.given: Any = given
        self.generate, self.sync = given.generate, given.sync  # type: ignore[method-assign]

    def close(self) -> None:
        getattr(self.given, "close", super().close)()


def seeded_generator(device: torch.device | str, *key: int | str) -> torch.Generator:
    """Return a generator that is a function of `key` alone, for example (seed, epoch, rank).

    Two keys give independent streams, so ranks never sample the same text, and nothing has to be saved to resume.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
