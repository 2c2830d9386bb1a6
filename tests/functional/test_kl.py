"""KL estimates compared with enumerated divergences."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import kl_estimate

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
Q = torch.tensor([0.2, 0.4, 0.3, 0.1], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("k1", lambda d: d),
        ("k2", lambda d: d * d / 2),
        ("k3", lambda d: math.exp(-d) - 1 + d),
        ("abs", abs),
    ],
)
def test_each_kind_equals_its_formula(kind, formula) -> None:
    logprobs, reference = P.log()[None], Q.log()[None]
    expected = [formula(math.log(p) - math.log(q)) for p, q in zip(P.tolist(), Q.tolist(), strict=True)]
    assert kl_estimate(logprobs, reference, kind)[0].tolist() == pytest.approx(expected, abs=1e-14)
    assert torch.autograd.gradcheck(lambda x: kl_estimate(x, reference, kind), logprobs.requires_grad_())


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_mean_under_the_policy_is_the_divergence(kind) -> None:
    divergence = sum(p * math.log(p / q) for p, q in zip(P.tolist(), Q.tolist(), strict=True))
    assert (P * kl_estimate(P.log(), Q.log(), kind)).sum().item() == pytest.approx(divergence, abs=1e-14)
    assert divergence > 0.1


@pytest.mark.parametrize(("kind", "is_gradient"), [("k1", False), ("k2", True), ("k3", False)])
def test_as_a_loss_only_k2_has_the_gradient_of_the_divergence(kind, is_gradient) -> None:
    logits = P.log().requires_grad_()
    logprobs = logits.log_softmax(0)
    (expected,) = torch.autograd.grad((logprobs.exp() * (logprobs - Q.log())).sum(), logits, retain_graph=True)
    (sampled,) = torch.autograd.grad((P * kl_estimate(logprobs, Q.log(), kind)).sum(), logits)
    assert torch.allclose(expected, sampled, atol=1e-12) is is_gradient
    if kind == "k1":
        assert torch.allclose(sampled, torch.zeros(4, dtype=torch.float64), atol=1e-12)
    if kind == "k3":
        assert torch.allclose(sampled, P - Q, atol=1e-12)  # the gradient of KL(reference || policy)


def test_k3_is_never_negative_and_0_at_equality() -> None:
    a, b = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    assert (kl_estimate(a, b, "k3") >= 0).all()
    assert (kl_estimate(a, a + 1e-6, "k3").abs() < 1e-6).all()
    for kind in ("k1", "k2", "k3", "abs"):
        assert (kl_estimate(a, a, kind) == 0).all()


def test_half_precision_is_computed_in_float32() -> None:
    a, b = torch.tensor([[-1.0]], dtype=torch.bfloat16), torch.tensor([[-1.0078125]], dtype=torch.bfloat16)
    estimate = kl_estimate(a, b, "k3")
    assert estimate.dtype == torch.float32
    assert estimate.item() == pytest.approx(math.exp(-0.0078125) - 1 + 0.0078125, rel=1e-2)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`ref_logprobs` has shape \[2, 1\]; expected \[2, 3\]"):
        kl_estimate(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(ValueError, match="`kind` is 'k4'; expected one of k1, k2, k3, abs"):
        kl_estimate(torch.zeros(2, 3), torch.zeros(2, 3), "k4")
