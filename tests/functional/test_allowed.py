"""Masks of the vocabulary: the nucleus against a loop, and bits."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.functional import (
    IGNORE_INDEX,
    chunked_token_logprobs,
    count_allowed,
    entropy,
    pack_allowed,
    token_logprobs,
    top_p_mask,
    unpack_allowed,
)


def nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """Take tokens, the most likely first, until their mass is at least p."""
    taken: set[int] = set()
    mass = 0.0
    for token in sorted(range(len(probabilities)), key=lambda i: (-probabilities[i], i)):
        if mass >= top_p:
            break
        taken.add(token)
        mass += probabilities[token]
    return taken


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_nucleus_is_the_smallest_set_of_at_least_this_mass(top_p: float, temperature: float) -> None:
    logits = 2 * torch.randn(40, 11, generator=torch.Generator().manual_seed(0))
    found = top_p_mask(logits, top_p, temperature)
    for row, probabilities in zip(found, (logits.double() / temperature).softmax(-1), strict=True):
        assert set(row.nonzero().flatten().tolist()) == nucleus(probabilities.tolist(), top_p)
        assert float(probabilities[row].sum()) >= top_p - 1e-6


def test_the_most_likely_token_is_always_in_it_and_excluded_ones_never() -> None:
    logits = torch.tensor([[10.0, 0.0, -torch.inf], [0.0, 0.0, 0.0]])
    assert top_p_mask(logits, 0.01).tolist() == [[True, False, False], [True, False, False]]
    assert top_p_mask(logits, 1.0).tolist() == [[True, True, False], [True, True, True]]
    for wrong in (0.0, 1.1, -0.5):
        with pytest.raises(ValueError, match="top_p"):
            top_p_mask(logits, wrong)


@pytest.mark.parametrize("vocabulary", [1, 7, 8, 9, 64, 1001])
def test_bits_are_the_mask(vocabulary: int) -> None:
    mask = torch.rand(3, 5, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) < 0.5
    bits = pack_allowed(mask)
    assert bits.dtype == torch.uint8 and bits.shape == (3, 5, -(-vocabulary // 8))
    assert torch.equal(unpack_allowed(bits, vocabulary), mask)
    assert torch.equal(count_allowed(bits), mask.sum(dim=-1))
    with pytest.raises(ValueError, match="bytes"):
        unpack_allowed(bits, vocabulary + 8)


@pytest.mark.parametrize("frozen_head", [False, True])
def test_log_probabilities_are_renormalised_over_the_allowed_tokens(frozen_head: bool) -> None:
    """In chunks and at once, with the gradients of logits that are -inf outside."""
    generator = torch.Generator().manual_seed(1)
    head = torch.nn.Linear(6, 13)
    head.requires_grad_(not frozen_head)
    hidden = torch.randn(2, 5, 6, generator=generator, requires_grad=True)
    labels = torch.randint(13, (2, 5), generator=generator)
    mask = (torch.rand(2, 5, 13, generator=generator) < 0.5).scatter(-1, labels.unsqueeze(-1), True)
    labels[0, 3] = IGNORE_INDEX
    masked = head(hidden).masked_fill(~mask, -torch.inf)
    expected = token_logprobs(masked, labels, 0.7)
    (gradient,) = torch.autograd.grad(expected.sum(), hidden, retain_graph=True)
    for size in (3, 100):
        found, entropies = chunked_token_logprobs(
            hidden, head, labels, 0.7, size, with_entropy=not frozen_head, frozen_head=frozen_head,
            allowed=pack_allowed(mask),
        )  # fmt: skip
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found.sum(), hidden, retain_graph=True)[0], gradient)
        if entropies is not None:
            wanted = entropy(masked, 0.7).masked_fill(labels == IGNORE_INDEX, 0.0)
            torch.testing.assert_close(entropies, wanted)
    everything = chunked_token_logprobs(hidden, head, labels, allowed=pack_allowed(torch.ones_like(mask)))[0]
    assert torch.equal(everything, chunked_token_logprobs(hidden, head, labels)[0])
