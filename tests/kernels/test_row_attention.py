"""Attention of packed rows one by one, with torch's own kernel as the oracle for values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.kernels import row_attention
from rlhf_lightning.kernels.packing import PACKABLE, pack
from rlhf_lightning.kernels.row_attention import Row, attend, suits
from rlhf_lightning.models import predict_tokens
from tests.kernels.test_packing import assert_packed_is_padded, batch
from tests.tiny import tiny_model

# A separate row; one that borrows from it, in the middle of a tile; one of one token; one that borrows up to a tile's
# end.
ROWS = [Row(0, 300), Row(300, 420, 0, 250), Row(420, 421), Row(421, 500, 0, 128)]
TOKENS = 512  # a few at the end belong to no row


def inputs(heads: int, key_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return (
        torch.randn(TOKENS, heads, 16, requires_grad=True),
        torch.randn(TOKENS, key_heads, 16, requires_grad=True),
        torch.randn(TOKENS, key_heads, 16, requires_grad=True),
    )


def by_torch(query: Tensor, key: Tensor, value: Tensor, rows: list[Row], scaling: float) -> Tensor:
    """Compute each row with an explicit mask."""
    parts = []
    for row in rows:
        q = query[row.start : row.stop].transpose(0, 1)[None]
        k, v = (
            torch.cat([x[row.shared_start : row.shared_stop], x[row.start : row.stop]]).transpose(0, 1)[None]
            for x in (key, value)
        )
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(row.shared)
        out = nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=scaling, enable_gqa=True)
        parts.append(out[0].transpose(0, 1))
    rest = query.new_zeros(len(query) - sum(map(len, parts)), *query.shape[1:])
    return torch.cat([*parts, rest])


@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (3, 3)])
def test_values_and_gradients_are_those_of_torch(heads: int, key_heads: int) -> None:
    given = inputs(heads, key_heads)
    weights = torch.randn(TOKENS, heads, 16)
    results = []
    for function in (attend, by_torch):
        out = function(*given, ROWS, 0.3)
        results.append((out, *torch.autograd.grad((out * weights).sum(), given)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-5)


def test_nothing_is_kept_but_what_is_read() -> None:
    given, kept = inputs(6, 2), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        attend(*given, ROWS, 0.3)
    assert kept == [x.data_ptr() for x in given]


def test_tiles_cover_every_query_once_and_come_in_few_sizes() -> None:
    for row in (Row(0, 1), Row(0, 32), Row(5, 505), Row(500, 700, 3, 133), Row(0, 100, 200, 456)):
        tiles = list(row.tiles())
        covered = [place for tile, _ in tiles for place in range(tile.start, tile.stop)]
        assert covered == list(range(row.last - row.first))
        assert all(end == row.first + tile.stop for tile, end in tiles)
        assert all(end % row_attention.STEP == 0 for _, end in tiles)
        assert all(tile.stop - tile.start <= row_attention.TILE for tile, _ in tiles)
        assert row.first <= row.shared < row.length <= row.last


def test_long_rows_on_a_cpu_in_float32_without_dropout() -> None:
    query, key, long, short = torch.zeros(1, 9, 1, 8), torch.zeros(1, 3, 1, 8), [Row(0, 500)], [Row(0, 40)]
    assert suits(query, key, key, long, 500**2, 0.0)
    assert not suits(query, key, key, short, 40**2, 0.0)
    assert suits(query, key, key, short, 500**2, 0.0)  # next to a long one, padded as far
    assert not suits(query, key, key, long, 500**2, 0.1)
    assert not suits(query.bfloat16(), key.bfloat16(), key.bfloat16(), long, 500**2, 0.0)
    assert not suits(query.to("meta"), key.to("meta"), key.to("meta"), long, 500**2, 0.0)


@pytest.mark.parametrize("family", PACKABLE)
def test_a_network_gives_what_it_gives_for_padded_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_attention, "suits", lambda *_: True)
    assert_packed_is_padded(lambda: tiny_model(family).eval(), monkeypatch)


def test_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(row_attention, "suits", lambda *_: True)
    monkeypatch.setattr(row_attention, "attend", lambda *given: calls.append(len(given[3])) or attend(*given))
    model = tiny_model().eval()
    predict_tokens(model, *batch())
    assert calls == [6] * model.config.num_hidden_layers


def test_rows_know_where_their_tokens_and_those_they_borrow_are() -> None:
    ids, flags = batch()
    lengths = (flags * torch.arange(1, flags.shape[1] + 1)).amax(dim=1)
    packed = pack(ids, lengths, torch.minimum(flags.argmax(dim=1), lengths))
    assert packed is not None
    found = [[*range(row.shared_start, row.shared_stop), *range(row.start, row.stop)] for row in packed.rows]
    assert found == [row[:length].tolist() for row, length in zip(packed.places, lengths, strict=True)]
    assert [row.shared for row in packed.rows] == [0, 5, 0, 5, 2, 0]
