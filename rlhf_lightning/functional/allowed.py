"""Which tokens may be sampled, as masks of the vocabulary, and as bits: one byte for eight tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, check_positive


def top_p_mask(logits: Tensor, top_p: float, temperature: float = 1.0) -> Tensor:
    r"""Return the smallest set of most likely tokens with mass of at least p (the nucleus of Holtzman et al. 2020).

    A token is in it if the tokens that are more likely have a mass below p, so the most likely one always is. Of
    equally likely tokens those with smaller ids come first.

    Args:
        logits: [..., V]. -inf excludes a token.
        top_p: p, in (0, 1].
        temperature: of the distribution, $\mathrm{softmax}(z / \tau)$.

    Returns:
        [..., V] bool.

    Raises:
        ValueError: `top_p` is not in (0, 1]; `temperature` <= 0.

    >>> top_p_mask(torch.tensor([0.5, 0.3, 0.15, 0.05]).log(), 0.7)
    tensor([ True,  True, False, False])
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"`top_p` is {top_p}; expected a number in (0, 1]")
    check_positive(temperature=temperature)
    probabilities = (at_least_float32(logits) / temperature).softmax(dim=-1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    before = (ordered.to(exact).cumsum(dim=-1) - ordered.to(exact)).to(ordered.dtype)
    inside = (before < top_p) & (ordered > 0)
    return torch.zeros_like(inside).scatter(-1, order, inside)


def pack_allowed(allowed: Tensor) -> Tensor:
    """Return a mask [..., V] as bits [..., ceil(V / 8)] in uint8: token i is bit i % 8 of byte i // 8.

    >>> pack_allowed(torch.tensor([True, False, True, False, False, False, False, False, True]))
    tensor([5, 1], dtype=torch.uint8)
    """
    padded = torch.nn.functional.pad(allowed.to(torch.uint8), (0, -allowed.shape[-1] % 8))
    return (padded.unflatten(-1, (-1, 8)) << _places(allowed.device)).sum(dim=-1, dtype=torch.uint8)


def unpack_allowed(bits: Tensor, vocabulary: int) -> Tensor:
    """Return the mask [..., V] of bits [..., ceil(V / 8)].

    Raises:
        ValueError: there are not as many bits.

    >>> unpack_allowed(torch.tensor([5], dtype=torch.uint8), 4)
    tensor([ True, False,  True, False])
    """
    if bits.shape[-1] != -(-vocabulary // 8):
        raise ValueError(f"`bits` has {bits.shape[-1]} bytes; expected {-(-vocabulary // 8)} for {vocabulary} tokens")
    return ((bits.unsqueeze(-1) >> _places(bits.device)) & 1).flatten(-2)[..., :vocabulary].bool()


def count_allowed(bits: Tensor) -> Tensor:
    """Return how many tokens are allowed, [...], in bits [..., ceil(V / 8)].

    >>> count_allowed(torch.tensor([5, 1], dtype=torch.uint8))
    tensor(3)
    """
    ones = ((torch.arange(256, device=bits.device).unsqueeze(1) >> _places(bits.device).long()) & 1).sum(dim=1)
    return ones[bits.long()].sum(dim=-1)


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
