"""Causal attention on a CPU, row by row over packed tokens, for long rows.

torch's own CPU kernel takes padded rows, also computes the pairs above the diagonal (up to 512 keys at a time), and
reads a prompt that several rows share once for each row. Here every row is processed on its own, in tiles of queries
that read no keys after their own tile, and what a row shares is only read. With `fast_products` the products are
oneDNN's.

Shapes: N packed tokens, H heads of D, K heads of keys and values, each read by G = H / K heads of queries. A row has L
tokens, of which the first P belong to another row.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf_lightning.compat.torch_names import softmax_backward

# The cost here of a pair of a query and a key, where it costs torch's kernel 1, and the additional cost of every tile
# and head of keys (measured in float32 on a Zen 5 core).
PAIR, PART = 0.6, 20_000
# Queries per tile: the weights of a tile stay in the processor's cache.
TILE = 128
# Tiles begin and end at multiples of this, so that products come in few shapes.
STEP = 32
Multiply = Callable[[Tensor, Tensor], Tensor]


class Row(NamedTuple):
    """Where a row's tokens are among the packed ones: its own, which are its queries, and before them another row's."""

    start: int
    stop: int
    shared_start: int = 0
    shared_stop: int = 0

    @property
    def shared(self) -> int:
        """Return P."""
        return self.shared_stop - self.shared_start

    @property
    def length(self) -> int:
        """Return L."""
        return self.shared + self.stop - self.start

    @property
    def first(self) -> int:
        """Return the position in the row at which the first tile begins: at P, or a little before."""
        return self.shared // STEP * STEP

    @property
    def last(self) -> int:
        """Return the position at which the last tile ends: at L, or a little after."""
        return -(-self.length // STEP) * STEP

    def queries(self, x: Tensor) -> Tensor:
        """Return the row's own tokens [H, last - first, D] of [N, H, D], with zeros where tiles have no query."""
        out = x.new_zeros(x.shape[1], self.last - self.first, x.shape[2])
        self.of_queries(out).copy_(x[self.start : self.stop])
        return out

    def of_queries(self, x: Tensor) -> Tensor:
        """Return the own tokens [L - P, H, D] in the result of `queries`."""
        return x[:, self.shared - self.first : self.length - self.first].transpose(0, 1)

    def keys(self, x: Tensor) -> Tensor:
        """Return all of the row's tokens [K, last, D] of [N, K, D], followed by zeros that no query reads."""
        out = x.new_zeros(x.shape[1], self.last, x.shape[2])
        out[:, : self.shared] = x[self.shared_start : self.shared_stop].transpose(0, 1)
        out[:, self.shared : self.length] = x[self.start : self.stop].transpose(0, 1)
        return out

    def add_keys(self, total: Tensor, x: Tensor) -> None:
        """Add what `keys` extracted back to [N, K, D]."""
        total[self.shared_start : self.shared_stop] += x[:, : self.shared].transpose(0, 1)
        total[self.start : self.stop] += x[:, self.shared : self.length].transpose(0, 1)

    def tiles(self) -> Iterator[tuple[slice, int]]:
        """Yield the slice of queries and the number of keys of each tile."""
        begin = self.first
        while begin < self.last:
            end = min(begin // TILE * TILE + TILE, self.last)
            yield slice(begin - self.first, end - self.first), end
            begin = end


_ALWAYS = [False]


@contextlib.contextmanager
def always() -> Iterator[None]:
    """Attend row by row inside, however short the rows are, so that a check with a few tokens covers it."""
    _ALWAYS[0] = True
    try:
        yield
    finally:
        _ALWAYS[0] = False


def suits(query: Tensor, key: Tensor, value: Tensor, rows: Sequence[Row], padded: int, dropout: float) -> bool:
    """Return whether rows are faster one by one than side by side, as `padded` pairs of a query and a key.

    Queries are [1, H, N, D], keys and values [1, K, N, D].
    """
    if not query.is_cpu or dropout or torch.is_autocast_enabled("cpu"):  # autocast chooses the dtype of torch's kernel
        return False
    if not query.dtype == key.dtype == value.dtype == torch.float32:
        return False
    if _ALWAYS[0]:
        return True
    heads, key_heads = query.shape[1], key.shape[1]
    if PART * key_heads * len(rows) >= heads * padded:  # every row has a tile: no need to count many short rows
        return False
    tiles = [(tile.stop - tile.start) * end for row in rows for tile, end in row.tiles()]
    return PAIR * heads * sum(tiles) + PART * key_heads * len(tiles) < heads * padded


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Sequence[Row],
    scaling: float,
    multiply: Multiply = torch.matmul,
) -> Tensor:
    r"""Return $\mathrm{softmax}(s\,q k^T + \text{mask})\,v$ of every row's own tokens over the tokens up to each.

    Args:
        query: [N, H, D].
        key, value: [N, K, D].
        rows: N's rows; tokens in no row come out as zeros.
        scaling: the $s$.
        multiply: computes the product of two matrices.

    Returns:
        [N, H, D].
    """
    out: Tensor = RowAttention.apply(query, key, value, rows, scaling, multiply)
    return out


class RowAttention(torch.autograd.Function):
    """`attend`. Only its inputs are stored: the backward pass recomputes the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rows: Sequence[Row],
        scaling: float,
        multiply: Multiply,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.rows, ctx.scaling, ctx.multiply = rows, scaling, multiply
        out = torch.zeros_like(query)
        for row in rows:
            queries, keys, values = row.queries(query).mul_(scaling), row.keys(key), row.keys(value)
            read = torch.empty_like(queries)
            for tile, head, heads, end in _parts(row, queries, keys):
                weights = _weights(_flat(queries, heads, tile), keys[head, :end], tile.stop - tile.start, multiply)
                _put(read, heads, tile, multiply(weights, values[head, :end]))
            out[row.start : row.stop] = row.of_queries(read)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value = ctx.saved_tensors
        multiply = ctx.multiply
        of_query, of_key, of_value = (torch.zeros_like(x) for x in (query, key, value))
        for row in ctx.rows:
            queries, keys, values = row.queries(query).mul_(ctx.scaling), row.keys(key), row.keys(value)
            gradients, of_queries = row.queries(gradient), torch.empty_like(queries)
            # Transposed, [K, D, L]: a product with the weights on its right is faster.
            of_keys, of_values = (torch.zeros_like(x.transpose(1, 2)) for x in (keys, values))
            for tile, head, heads, end in _parts(row, queries, keys):
                q, g = _flat(queries, heads, tile), _flat(gradients, heads, tile)
                weights = _weights(q, keys[head, :end], tile.stop - tile.start, multiply)
                of_weights = multiply(g, values[head, :end].T)
                of_scores = softmax_backward(of_weights, weights)
                _put(of_queries, heads, tile, multiply(of_scores, keys[head, :end]))
                of_keys[head, :, :end] += multiply(q.T.contiguous(), of_scores)
                of_values[head, :, :end] += multiply(g.T.contiguous(), weights)
            of_query[row.start : row.stop] = row.of_queries(of_queries.mul_(ctx.scaling))
            row.add_keys(of_key, of_keys.transpose(1, 2))
            row.add_keys(of_value, of_values.transpose(1, 2))
        return of_query, of_key, of_value, None, None, None


def _parts(row: Row, queries: Tensor, keys: Tensor) -> Iterator[tuple[slice, int, slice, int]]:
    """Yield (tile, key head, query heads that read it, number of keys) for every tile and head of keys."""
    group = len(queries) // len(keys)
    for tile, end in row.tiles():
        for head in range(len(keys)):
            yield tile, head, slice(head * group, (head + 1) * group), end


def _flat(x: Tensor, heads: slice, tile: slice) -> Tensor:
    return x[heads, tile].reshape(-1, x.shape[-1])


def _put(x: Tensor, heads: slice, tile: slice, flat: Tensor) -> None:
    part = x[heads, tile]
    part.copy_(flat.view(part.shape))


def _weights(queries: Tensor, keys: Tensor, width: int, multiply: Multiply) -> Tensor:
    """Return the attention weights of G * width queries over the keys, the last of which are the tile's own."""
    scores = multiply(queries, keys.T)
    scores.view(-1, width, len(keys))[:, :, -width:] += _causal(width)
    return torch.softmax(scores, dim=-1)


@functools.cache
def _causal(width: int) -> Tensor:
    return torch.full((width, width), -math.inf, dtype=torch.float32).triu(1)
