from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import truncated_importance_weights


def test_a_weight_is_the_ratio_of_the_probabilities_up_to_the_cap() -> None:
    torch.manual_seed(0)
    trainer, engine = -3 * torch.rand(4, 6), -3 * torch.rand(4, 6)
    mask = (torch.rand(4, 6) < 0.7).float()
    weights = truncated_importance_weights(trainer, engine, mask, 1.5)
    assert (weights == 1.5).any() and ((weights > 0) & (weights < 1)).any()
    for i in range(4):
        for t in range(6):
            want = min(math.exp(trainer[i, t].item() - engine[i, t].item()), 1.5) if mask[i, t] else 0.0
            assert weights[i, t].item() == pytest.approx(want, rel=1e-5)


def test_without_a_binding_cap_weighted_means_are_those_of_the_other_distribution() -> None:
    """By enumeration: E_mu[w f] = E_pi[f] for every f, and at most that for f >= 0 with a binding cap."""
    torch.manual_seed(0)
    pi, mu, values = torch.rand(8).softmax(0), torch.rand(8).mul(3).softmax(0), torch.rand(8)
    ones = torch.ones(1, 8)
    weights = truncated_importance_weights(pi.log()[None], mu.log()[None], ones, cap=100.0)[0]
    torch.testing.assert_close((mu * weights * values).sum(), (pi * values).sum())
    capped = truncated_importance_weights(pi.log()[None], mu.log()[None], ones, cap=1.0)[0]
    assert (mu * capped * values).sum() < (pi * values).sum() - 0.01


def test_equal_probabilities_weigh_exactly_one() -> None:
    logprobs = -5 * torch.rand(3, 5)
    assert torch.equal(truncated_importance_weights(logprobs, logprobs, torch.ones(3, 5), 2.0), torch.ones(3, 5))


def test_what_is_off_the_mask_is_never_read() -> None:
    nan, inf = float("nan"), float("inf")
    weights = truncated_importance_weights(
        torch.tensor([[-1.0, nan, -inf]]), torch.tensor([[-1.0, -inf, nan]]), torch.tensor([[1.0, 0.0, 0.0]]), 2.0
    )
    assert weights.tolist() == [[1.0, 0.0, 0.0]]


def test_a_token_that_the_engine_thought_impossible_counts_the_cap() -> None:
    weights = truncated_importance_weights(
        torch.tensor([[-1.0, -2.0]]), torch.tensor([[-9999.0, -2000.0]]), torch.ones(1, 2), 2.0
    )
    assert weights.tolist() == [[2.0, 2.0]]


def test_no_gradient_flows_through_a_weight() -> None:
    logprobs = torch.zeros(1, 2, requires_grad=True)
    assert not truncated_importance_weights(logprobs, torch.zeros(1, 2), torch.ones(1, 2), 2.0).requires_grad


def test_half_precision_is_computed_in_float32() -> None:
    half = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    weights = truncated_importance_weights(half, half - 0.5, torch.ones(1, 1), 10.0)
    assert weights.dtype == torch.float32
    assert weights.item() == pytest.approx(math.exp(0.5))


def test_wrong_shapes_and_caps_are_refused() -> None:
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match="`sampling_logprobs` has shape"):
        truncated_importance_weights(ones, torch.ones(2, 1), ones, 2.0)
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="`cap` is"):
            truncated_importance_weights(ones, ones, ones, cap)
