"""Counting the bytes of live tensors, operator by operator."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from rlhf_lightning.compat.torch_names import WatchedOperators, storage_key, tensors_in


class Alive(NamedTuple):
    """Bytes alive at one moment: of logits (last dimension as long as the vocabulary), and of all other tensors."""

    logits: int
    others: int


class LiveBytes(WatchedOperators):
    """Tracks, while active, the bytes of every storage that an operator created and that has not been freed.

    It sees what autograd stores for the backward pass, what an operator of the backward pass creates, and what is freed
    in between; on fake tensors nothing is computed and nothing is allocated. Storages created earlier do not count.

    Args:
        vocab_size: distinguishes logits from other tensors.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.now = Alive(0, 0)
        self.peak = Alive(0, 0)
        self.marks: list[tuple[str, Alive]] = []
        self._alive: dict[int, Alive] = {}
        self._outside: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tensors_in((args, kwargs)):
            self._leave_out(tensor)
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            self._add(tensor)
        return out

    def _leave_out(self, tensor: Tensor) -> None:
        """Ignore a storage that no operator created, and its views: it is older than this mode."""
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key not in self._alive and key not in self._outside:
            self._outside.add(key)
            weakref.finalize(storage, self._outside.discard, key)

    def _add(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), storage_key(tensor)
        if key in self._alive or key in self._outside:
            return
        size = storage.nbytes()
        is_logits = tensor.ndim > 1 and tensor.shape[-1] == self.vocab_size
        self._alive[key] = Alive(size, 0) if is_logits else Alive(0, size)
        weakref.finalize(storage, self._remove, key)
        self.now = Alive(self.now.logits + self._alive[key].logits, self.now.others + self._alive[key].others)
        if sum(self.now) > sum(self.peak):
            self.peak = self.now

    def _remove(self, key: int) -> None:
        gone = self._alive.pop(key)
        self.now = Alive(self.now.logits - gone.logits, self.now.others - gone.others)

    def mark(self, stage: str) -> None:
        """End a stage of the pass: record its peak; the next stage begins with what is alive now."""
        self.marks.append((stage, self.peak))
        self.peak = self.now
