"""Rows without padding, and a prompt shared by several rows computed once.

The tokens a network must see are laid out one after the other in a single row, what rows share only once; their
positions restart with every row. Everything in a network except attention works on each token alone. Attention puts the
rows together again, padded: it is the smaller part of the work, its causal kernel needs no mask, and every token reads
what it would read in its own row. The hidden states are the same up to rounding (1e-5 in float32), and so are the
gradients: shared tokens get the sum of the rows' gradients.

Shapes: B rows of L tokens, N tokens without padding, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_lightning.compat.transformers_names import attention_of
from rlhf_lightning.kernels import row_attention
from rlhf_lightning.kernels.fast_products import product_by_onednn, rows_to_add
from rlhf_lightning.kernels.last_layer import reads_less
from rlhf_lightning.kernels.registry import PACKABLE
from rlhf_lightning.kernels.row_attention import Row

# Packing is used if it leaves at most this share of the padded rows' tokens, since splitting and joining rows has a
# cost. Likewise a row shares its beginning only if that leaves at most this share of its tokens.
WORTH = 0.9
# transformers' name of `attend_in_rows`, which is `sdpa` for everything that is not packed.
IN_ROWS = "sdpa_in_rows"


class Packed(NamedTuple):
    """The network's input, and where each token of the original rows is found in it."""

    input_ids: Tensor  # [1, N]
    position_ids: Tensor  # [1, N]
    places: Tensor  # [B, L] long, position in N of each token that is needed; arbitrary for the others
    sources: Tensor  # [N] long, position of each token in the flattened [B * L]
    rows: list[Row]  # those with tokens
    read: Tensor  # [K or a few more] long, positions in N of the tokens whose states are wanted
    wanted: int  # K
    kernels: Collection[str]  # names of the active kernels

    def states(self, backbone: Any) -> Tensor:
        """Return the backbone's states of the wanted tokens, [K, H], in row-major order."""
        if attention_of(backbone.config) != IN_ROWS:
            register_attention()
            backbone.set_attn_implementation(IN_ROWS)
        finished = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.places.device)  # given so that none is built
        out = backbone(
            input_ids=self.input_ids,
            position_ids=self.position_ids,
            attention_mask=finished,
            use_cache=False,
            packed=self,
        )
        states: Tensor = out.last_hidden_state[0]
        return states[: self.wanted] if reads_less(backbone) else states[self.read[: self.wanted]]


def register_attention() -> None:
    """Register `attend_in_rows` with transformers under its name."""
    AttentionInterface.register(IN_ROWS, attend_in_rows)
    AttentionMaskInterface.register(IN_ROWS, sdpa_mask)


def attend_in_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed: Packed | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return attention [1, N, heads, dim] of packed tokens [1, heads, N, dim], row by row; otherwise plain `sdpa`."""
    if packed is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    padded = packed.places.numel() * packed.places.shape[1]
    by_row = "row_attention" in packed.kernels
    if by_row and row_attention.suits(query, key, value, packed.rows, padded, kwargs.get("dropout", 0.0)):
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        multiply: Callable[[Tensor, Tensor], Tensor] = (
            product_by_onednn if "fast_products" in packed.kernels else torch.matmul
        )
        return row_attention.attend(query, key, value, packed.rows, scaling, multiply)[None], None
    places = packed.places.flatten()  # for `index_select`, whose backward pass is faster than that of indexing
    query, key, value = (
        x[0].transpose(0, 1).index_select(0, places).unflatten(0, packed.places.shape).transpose(1, 2)
        for x in (query, key, value)
    )
    out, _ = sdpa_attention_forward(module, query, key, value, None, **{**kwargs, "is_causal": True})
    return out.flatten(0, 1).index_select(0, packed.sources)[None], None


def packable(config: Any, length: int) -> bool:
    """Return whether this architecture reads rows of up to `length` tokens through the mask alone."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    attention = attention_of(config)
    return config.model_type in PACKABLE and attention in ("sdpa", IN_ROWS) and (window is None or length <= window)


def pack(
    input_ids: Tensor,
    lengths: Tensor,
    shared: Tensor,
    wanted: Tensor | None = None,
    kernels: Collection[str] = (),
) -> Packed | None:
    """Lay right-padded rows out without their padding. The layout is computed on the CPU, with one transfer each way.

    Args:
        input_ids: [B, L] token ids.
        lengths: [B], how many tokens of each row are needed; 0 leaves the row out.
        shared: [B], at most `lengths`: this many tokens are computed once for all rows that begin with the same ones.
        wanted: [B, L] bool, the tokens whose states are wanted, all within `lengths`; None: none.
        kernels: names of the active kernels.

    Returns:
        The packed tokens, or None if there are none or packing saves too little.
    """
    device, size = input_ids.device, input_ids.shape[1]
    wanted = torch.zeros_like(input_ids) if wanted is None else wanted
    facts = torch.cat([input_ids, wanted, lengths.unsqueeze(1), shared.unsqueeze(1)], dim=1).cpu()
    ids, wanted, (lengths, shared) = facts[:, :size], facts[:, size : 2 * size].bool(), facts[:, -2:].unbind(1)
    columns, needed, begun = torch.arange(size, device="cpu"), lengths.tolist(), shared.tolist()
    lenders = _lenders(ids.tolist(), needed, begun)
    lender = torch.tensor(lenders, device="cpu")
    borrows = lender != torch.arange(len(lenders), device="cpu")
    begins = torch.where(borrows, shared, 0).unsqueeze(1)
    own = (columns >= begins) & (columns < lengths.unsqueeze(1))
    sources = own.flatten().nonzero().squeeze(1)
    if not 0 < len(sources) <= WORTH * ids.numel():
        return None
    places = (own.flatten().cumsum(0) - 1).clamp(min=0).view(own.shape)
    places = torch.where(columns < begins, places[lender], places)
    read = places[wanted]
    count = len(read)
    if "fast_products" in kernels:  # repetitions of the first token, which nothing reads
        sources, read = (nn.functional.pad(x, (0, rows_to_add(len(x)))) for x in (sources, read))
    parts = [ids.flatten()[sources], sources % size, places.flatten(), sources, read]
    # CUDA copies pageable memory before the call returns.
    sent = torch.cat(parts).to(device, non_blocking=device.type == "cuda").split([len(part) for part in parts])
    tokens, positions, flat, sources, read = sent
    rows = _rows(lenders, needed, begun)
    return Packed(tokens[None], positions[None], flat.view(own.shape), sources, rows, read, count, kernels)


def _lenders(rows: list[list[int]], lengths: list[int], shared: list[int]) -> list[int]:
    """Return, for every row, the row whose beginning it shares: the first with the same tokens, or itself."""
    first: dict[tuple[int, ...], int] = {}
    lenders = []
    for row, (length, start) in enumerate(zip(lengths, shared, strict=True)):
        lender = first.setdefault(tuple(rows[row][:start]), row) if start else row
        lenders.append(lender if length - start <= WORTH * length else row)
    return lenders


def _rows(lenders: list[int], lengths: list[int], shared: list[int]) -> list[Row]:
    """Return where the rows' tokens are, laid out one row after the other without what they borrow."""
    starts, rows = [0], []
    for row, (lender, length) in enumerate(zip(lenders, lengths, strict=True)):
        borrowed = shared[row] if lender != row else 0
        start, stop = starts[-1], starts[-1] + length - borrowed
        starts.append(stop)
        if stop > start:
            rows.append(Row(start, stop, starts[lender], starts[lender] + borrowed))
    return rows
