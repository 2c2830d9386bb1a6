"""What the length of a response costs."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, check_positive, check_shapes


def overlong_penalty(lengths: Tensor, max_length: int, buffer: int) -> Tensor:
    r"""Return DAPO's soft overlong penalty: $\min(1, \max(0, (n - (L - c)) / c))$, to be subtracted from the score.

    It is 0 up to L - c tokens, rises linearly over the buffer of c tokens, and is 1 from L tokens on. Source: Yu et al.
    2025 (arXiv:2503.14476), section 3.4, where it is a reward and therefore negative.

    Args:
        lengths: [B], n, tokens per response, the EOS included.
        max_length: L, tokens.
        buffer: c, tokens, at least 1 and at most L.

    Returns:
        [B] in float32 (float64 for float64), from 0 to 1.

    Raises:
        ValueError: `lengths` is not [B]; `buffer` is not above 0, or above `max_length`.

    >>> overlong_penalty(torch.tensor([6, 7, 8, 10, 12]), max_length=10, buffer=4)
    tensor([0.0000, 0.2500, 0.5000, 1.0000, 1.0000])
    """
    check_shapes(1, lengths=lengths)
    check_positive(buffer=buffer)
    if buffer > max_length:
        raise ValueError(f"`buffer` is {buffer}; expected at most `max_length`, {max_length}")
    beyond = at_least_float32(lengths) - (max_length - buffer)
    return torch.clamp(beyond / buffer, 0.0, 1.0)
