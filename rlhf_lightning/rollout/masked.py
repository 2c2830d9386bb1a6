"""Sampling under a mask of the vocabulary: the top-p tokens of a lagging copy of the policy.

Policy and copy read the same rows, each with its own cache. Every step masks the policy's logits, samples from what is
left, and keeps the mask, as bits, beside the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.functional.allowed import pack_allowed, top_p_mask
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.lagging import LaggingPolicy
from rlhf_lightning.rollout.native import Decoding
from rlhf_lightning.rollout.slots import GrowingCache, Place, SlotCache, make_cache
from rlhf_lightning.rollout.uncached import UncachedDecoding


class TopPMask:
    """The tokens that may be sampled.

    Args:
        lagging: the copy whose nucleus they are, at the sampling temperature.
        top_p: the nucleus's mass.
        always: ids that are allowed everywhere: the end of a response must stay within reach.
    """

    def __init__(self, lagging: LaggingPolicy, top_p: float, always: Sequence[int]) -> None:
        self.lagging, self.top_p, self.always = lagging, top_p, sorted(set(always))

    def __call__(self, logits: Tensor, temperature: float) -> Tensor:
        """Return which tokens are allowed, [n, V] bool, from the copy's logits [n, V]."""
        allowed = top_p_mask(logits, self.top_p, temperature or 1.0)
        allowed[..., [token for token in self.always if token < logits.shape[-1]]] = True
        return allowed


class TwoCaches:
    """The caches of policy and copy, whose rows come, move and leave together."""

    def __init__(self, policy: SlotCache | GrowingCache, lagging: SlotCache | GrowingCache) -> None:
        self.policy, self.lagging = policy, lagging
        self.refills = policy.refills

    @property
    def place(self) -> Place:
        """Return where the rows are, which is the same in both."""
        return self.policy.place

    def add(self, lengths: list[int], source: Tensor) -> None:
        for cache in (self.policy, self.lagging):
            cache.add(lengths, source)

    def added(self) -> None:
        for cache in (self.policy, self.lagging):
            cache.added()

    def open_column(self) -> None:
        for cache in (self.policy, self.lagging):
            cache.open_column()

    def keep(self, rows: list[int]) -> None:
        for cache in (self.policy, self.lagging):
            cache.keep(rows)


class _Masked:
    """What both ways of decoding share: the copy's logits of the current step, and the masks made of them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mask: TopPMask = args[2].mask
        self.lagging_logits = torch.empty(0)

    def _logits(self: Any, states: Tensor, put: Tensor, places: Tensor | slice = slice(None)) -> Tensor:
        logits: Tensor = super()._logits(states, put, places)  # type: ignore[misc]
        allowed = self.mask(self.lagging_logits[places], self.settings.temperature)
        self.drawn.allow(put, pack_allowed(allowed))
        return logits.masked_fill(~allowed, -torch.inf)


class MaskedDecoding(_Masked, Decoding):
    """Decoding from caches."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model, settings = args[0], args[3]
        columns = len(self.waiting[-1].prompt) + settings.max_new_tokens - 1
        lagging = make_cache(bare_model(model).config.get_text_config(), self.slots, columns)
        self.cache: Any = TwoCaches(self.cache, lagging)

    def _states(self, ids: Tensor, attention: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        states = super()._states(ids, attention, positions, self.cache.policy)
        of_copy = super()._states
        self.lagging_logits = self.mask.lagging(
            lambda: self.head(of_copy(ids, attention, positions, self.cache.lagging)).float()
        )
        return states


class MaskedUncachedDecoding(_Masked, UncachedDecoding):
    """Decoding that reads whole rows again."""

    def _states(self, rows: list[list[int]]) -> Tensor:
        of_copy = super()._states
        self.lagging_logits = self.mask.lagging(lambda: self.head(of_copy(rows)).float())
        return of_copy(rows)


def masked(decoding: type) -> type:
    """Return the way of decoding under a mask."""
    return MaskedDecoding if issubclass(decoding, Decoding) else MaskedUncachedDecoding
