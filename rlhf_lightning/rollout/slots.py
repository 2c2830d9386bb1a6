"""The keys and values of the rows being decoded, in slots that are allocated once and reused.

All rows end in the same column: a step writes one column, and every row extends back by its own length.

    slot 0    . . p p p r r r r      p prompt, r response, . masked: not this row's
    slot 1    . . . . . p p p r      took a free slot three steps ago
                  |             |
                begin          end   what attention reads

Both caches have the same methods: `add` rows, read their prompts, `added`; `open_column` before each step; `keep` the
rows that continue.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from rlhf_lightning.models.transfer import to_device


@dataclass
class Place:
    """The part of the buffers that is in use, the same in all layers."""

    slots: int
    columns: int
    starts: list[int] = field(default_factory=list)  # the first column of each row; rows are in the first slots
    begin: int = 0  # the first column in use
    end: int = 0  # the column after the last
    source: Tensor | None = None  # while prompts are read: the prompt that each new row begins with

    def hold(self, starts: list[int], end: int) -> None:
        """Set the rows' first columns, and the column after their last."""
        self.starts, self.begin, self.end = starts, min(starts, default=end), end


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, [slots, heads, columns, dim]. Sliding windows are left to the mask."""

    keys: Tensor
    values: Tensor

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate zeros: even masked values must be finite."""
        self.keys, self.values = (
            x.new_zeros(self.place.slots, x.shape[1], self.place.columns, x.shape[3])
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store the states of new rows' prompts, or of one token of every row; return what attention reads."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        return self._store(self.keys, key_states), self._store(self.values, value_states)

    def _store(self, buffer: Tensor, states: Tensor) -> Tensor:
        rows, end, source = len(self.place.starts), self.place.end, self.place.source
        if source is not None:  # a prompt reads only itself
            buffer[rows - len(source) : rows, :, end - states.shape[2] : end] = states[source]
            return states
        buffer[:rows, :, end - 1] = states[:, :, 0]
        return buffer[:rows, :, self.place.begin : end]

    def get_seq_length(self) -> int:
        """Return the number of columns that a step finds filled."""
        return 0 if self.place.source is not None else self.place.end - 1 - self.place.begin

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of columns that attention reads, and the first one's index."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Return the number of allocated columns."""
        return self.place.columns

    def move(self, targets: Tensor, sources: Tensor) -> None:
        """Copy rows into other slots."""
        for buffer in (self.keys, self.values):
            used = buffer[:, :, self.place.begin : self.place.end]
            used[targets] = used[sources]

    def to_front(self) -> None:
        """Copy the columns in use to the front."""
        rows, begin, end = len(self.place.starts), self.place.begin, self.place.end
        for buffer in (self.keys, self.values):
            buffer[:rows, :, : end - begin] = buffer[:rows, :, begin:end].clone()


class SlotCache(Cache):
    """A slot is free once its row has ended, and takes the next prompt.

    Args:
        layers: the network's number of layers, all with attention over keys and values.
        slots: most rows at a time.
        columns: at least the longest row.
    """

    refills = True

    def __init__(self, layers: int, slots: int, columns: int) -> None:
        self.place = Place(slots, columns)
        self.buffers = [SlotLayer(self.place) for _ in range(layers)]
        super().__init__(layers=[*self.buffers])

    def add(self, lengths: list[int], source: Tensor) -> None:
        """Take slots for rows whose prompts have these lengths; the next forward pass reads the prompts.

        None of them may be longer than the longest row in use. `source` says which of the prompts each row begins with.
        """
        end = self.place.end if self.place.starts else max(lengths)
        self.place.hold(self.place.starts + [end - length for length in lengths], end)
        self.place.source = source

    def added(self) -> None:
        """Note that the prompts have been read."""
        self.place.source = None

    def open_column(self) -> None:
        """Make room for one more token of every row."""
        place = self.place
        if place.end == place.columns:
            for layer in self.buffers:
                layer.to_front()
            place.hold([start - place.begin for start in place.starts], place.end - place.begin)
        place.end += 1

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows, in this order. A row may only move to a place where another one has ended."""
        moved = [(slot, row) for slot, row in enumerate(rows) if slot != row]
        if moved:
            targets, sources = to_device(moved, self.buffers[0].keys.device).unbind(1)
            for layer in self.buffers:
                layer.move(targets, sources)
        self.place.hold([self.place.starts[row] for row in rows], self.place.end)


class GrowingCache(DynamicCache):
    """transformers' own cache, for networks with more than keys and values: it grows by copies, without new rows."""

    refills = False

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.config = config
        self.place = Place(0, 0)

    def add(self, lengths: list[int], source: Tensor) -> None:
        """Start again with these rows."""
        self.layers = DynamicCache(config=self.config).layers
        end = max(lengths)
        self.place = Place(len(lengths), 0, source=source)
        self.place.hold([end - length for length in lengths], end)

    def added(self) -> None:
        """Give every row its own copy of its prompt, now that the prompts have been read."""
        self.reorder_cache(cast(torch.LongTensor, self.place.source))
        self.place.source = None

    def open_column(self) -> None:
        """Do nothing: one more token of every row follows."""
        self.place.end += 1

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows, in this order."""
        self.reorder_cache(torch.LongTensor(rows))
        self.place.starts = [self.place.starts[row] for row in rows]


def make_cache(config: Any, slots: int, columns: int) -> SlotCache | GrowingCache:
    """Return the cache for a network of this configuration."""
    layers = DynamicCache(config=config).layers
    if all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return SlotCache(len(layers), slots, columns)
    return GrowingCache(config)
