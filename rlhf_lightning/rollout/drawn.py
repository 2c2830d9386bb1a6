"""Sampled tokens: on the device, and as far as the host has read them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Row:
    """A prompt, and what the host knows about its response."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # those that the host has read, up to the first EOS
    ended: bool = False
    number: int = 0  # among all rows
    drawn: int = 0  # number of sampled tokens, read or not

    def read(self, token: int, eos_ids: frozenset[int]) -> None:
        """Add the next sampled token, which counts unless an EOS came before it."""
        if not self.ended:
            self.tokens.append(token)
            self.ended = token in eos_ids


class Drawn:
    """Tokens, their log-probabilities and values, each [B * T], on the device; 0 where nothing is sampled yet."""

    def __init__(self, rows: list[Row], longest: int, device: torch.device, with_values: bool) -> None:
        for number, row in enumerate(rows):
            row.number = number
        self.longest = longest
        self.tokens = torch.zeros(len(rows) * longest, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(len(rows) * longest, dtype=torch.float32, device=device)
        self.values = torch.zeros_like(self.logprobs) if with_values else None
        self.allowed: Tensor | None = None

    def place(self, row: Row) -> int:
        """Return the position of the row's next token."""
        return row.number * self.longest + row.drawn

    def put(
        self, rows: list[Row], places: Tensor, tokens: Tensor, logprobs: Tensor, values: Tensor | None = None
    ) -> None:
        """Store one token of each row, at its position."""
        self.tokens.index_copy_(0, places, tokens)
        self.logprobs.index_copy_(0, places, logprobs)
        if self.values is not None and values is not None:
            self.values.index_copy_(0, places, values.to(self.values))
        for row in rows:
            row.drawn += 1

    def allow(self, places: Tensor, bits: Tensor) -> None:
        """Store the masks that tokens at these positions are sampled under, [n, ceil(V / 8)]."""
        if self.allowed is None:
            self.allowed = bits.new_zeros(len(self.tokens), bits.shape[-1])
        self.allowed.index_copy_(0, places, bits)

    def valid(self, drawn: Tensor, mask: Tensor, fill: float) -> Tensor:
        """Return the sampled numbers as [B, T'], cut to the mask's columns and filled outside the mask."""
        return drawn.view(len(mask), self.longest)[:, : mask.shape[1]].masked_fill(~mask, fill)
