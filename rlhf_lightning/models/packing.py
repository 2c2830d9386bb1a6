"""Rows without padding, and a prompt that several rows share computed once.

The tokens a network must see are laid out in fewer, fuller rows: one block per prompt, which is the prompt followed by
its answers, and as many blocks a row as fit. An attention mask of its own keeps blocks, and the answers of a block,
apart, and positions restart, so every token sees what it sees in a row of its own. The hidden states are the same up to
rounding (1e-5 in float32), and so are the gradients: what answers share gets the sum of theirs.

Shapes: B rows of L tokens, R packed rows of W tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Families whose attention depends on nothing but the mask and the position ids, each tested. Others (sliding windows,
# ALiBi, state spaces) are left in rows of their own.
PACKABLE = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
# Packing is used where it leaves at most this share of the tokens that padded rows have: its mask is not free. Likewise
# a row shares its beginning only if that leaves at most this share of its tokens.
WORTH = 0.9
# Blocks are at most this many times as long as the longest row: attention grows with the square of a block's length.
# Two answers always fit in one; of many samples of a prompt, a few.
WIDEST = 2


class Packed(NamedTuple):
    """What to feed the network, and where each token of the original rows is found in it."""

    input_ids: Tensor  # [R, W]
    position_ids: Tensor  # [R, W]
    attention_mask: Tensor  # [R, 1, W, W] bool, True where the row's token may read the column's
    places: Tensor  # [B, L] long, place in the flattened [R * W] of each token that is needed; 0 for the others


@dataclass
class _Block:
    """A prompt and the rows that begin with it."""

    shared: int  # tokens at the start of its rows, laid out once
    rows: list[int]
    size: int  # tokens of the block


def packable(config: Any, length: int) -> bool:
    """Whether a network of this configuration reads rows of up to `length` tokens through the mask alone."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    attention = getattr(config, "_attn_implementation", None)
    return config.model_type in PACKABLE and attention == "sdpa" and (window is None or length <= window)


def pack(input_ids: Tensor, lengths: Tensor, shared: Tensor) -> Packed | None:
    """Lay right-padded rows out without their padding.

    Args:
        input_ids: [B, L] token ids.
        lengths: [B], how many of a row's tokens are needed; 0 leaves the row out.
        shared: [B], at most `lengths`: so many tokens are computed once for all rows that begin with the same ones.

    Returns:
        The packed rows, or None if they would hold nothing or hardly fewer tokens.
    """
    device, rows, needed = input_ids.device, input_ids.tolist(), lengths.tolist()
    blocks = _blocks(rows, needed, shared.tolist())
    packed = _first_fit(blocks)
    width = max((block.size for block in blocks), default=0)
    if not blocks or len(packed) * width > WORTH * input_ids.numel():
        return None
    place = torch.zeros(input_ids.shape, dtype=torch.long)
    table = torch.zeros(4, len(packed), width, dtype=torch.long)  # ids, positions, block and answer of every token
    for r, members in enumerate(packed):
        columns: list[tuple[int, int, int, int]] = []
        for number, block in enumerate(members, start=1):  # 0 is the empty end of a row, which reads only itself
            begin = r * width + len(columns)
            columns += [(token, i, number, 0) for i, token in enumerate(rows[block.rows[0]][: block.shared])]
            for answer, row in enumerate(block.rows, start=1):
                shift = r * width + len(columns) - block.shared
                own = enumerate(rows[row][block.shared : needed[row]], start=block.shared)
                columns += [(token, i, number, answer) for i, token in own]
                place[row, : needed[row]] = torch.arange(shift, shift + needed[row])
                place[row, : block.shared] -= shift - begin
        table[:, r, : len(columns)] = torch.tensor(columns).T
    ids, positions, block_of, answer_of = table
    # A token reads those before it in its block, the prompt's (answer 0) and those of its own answer.
    same_block = block_of[:, :, None] == block_of[:, None, :]
    readable = (answer_of[:, None, :] == 0) | (answer_of[:, :, None] == answer_of[:, None, :])
    mask = (same_block & readable).tril()[:, None]
    return Packed(ids.to(device), positions.to(device), mask.to(device), place.to(device))


def _blocks(rows: list[list[int]], lengths: list[int], shared: list[int]) -> list[_Block]:
    """Rows that begin with the same shared tokens form blocks; a row that shares little is one of its own."""
    blocks: list[_Block] = []
    open_blocks: dict[tuple[int, ...], _Block] = {}  # the last block of each beginning
    widest = WIDEST * max(lengths)
    for row, (length, start) in enumerate(zip(lengths, shared, strict=True)):
        if not length:
            continue
        key = tuple(rows[row][:start])
        block = open_blocks.get(key)
        if length - start > WORTH * length or block is None or block.size + length - start > widest:
            block = open_blocks[key] = _Block(start, [], start)
            blocks.append(block)
        block.rows.append(row)
        block.size += length - start
    return blocks


def _first_fit(blocks: list[_Block]) -> list[list[_Block]]:
    """Blocks by size, the largest first, each in the first row that has room; a row is as wide as the largest block."""
    ordered = sorted(blocks, key=lambda block: -block.size)
    rows: list[list[_Block]] = []
    room: list[int] = []
    for block in ordered:
        r = next((r for r, free in enumerate(room) if free >= block.size), None)
        if r is None:
            r = len(rows)
            rows.append([])
            room.append(ordered[0].size)
        rows[r].append(block)
        room[r] -= block.size
    return rows
