from __future__ import annotations

import pytest
import torch

from rlhf_lightning.functional import best_of_n_kl, expectile_loss


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.99])
def test_the_best_constant_is_the_expectile(expectile) -> None:
    """By definition: tau E[(x - m)+] = (1 - tau) E[(m - x)+]."""
    x = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = x.min(), x.max()
    for _ in range(100):
        middle = ((low + high) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(expectile_loss(x - middle, expectile).sum(), middle)
        low, high = (low, middle.detach()) if slope > 0 else (middle.detach(), high)
    above, below = (x - low).clamp(min=0).mean(), (low - x).clamp(min=0).mean()
    assert (expectile * above).item() == pytest.approx(((1 - expectile) * below).item(), abs=1e-9)


def test_one_half_is_half_the_square_and_half_precision_is_computed_in_float32() -> None:
    errors = torch.tensor([[1.0, -3.0]], dtype=torch.bfloat16)
    found = expectile_loss(errors, 0.5)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0.5, 4.5]]
    for wrong in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="`expectile` is"):
            expectile_loss(errors, wrong)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_best_of_n_moves_as_far_as_its_enumerated_divergence(n) -> None:
    """Over many equally probable responses with distinct scores: p(k) = (k/m)^n - ((k-1)/m)^n."""
    m = 20_000
    steps = torch.arange(m + 1, dtype=torch.float64) / m
    chances = steps[1:] ** n - steps[:-1] ** n
    exact = torch.special.xlogy(chances, chances * m).sum().item()
    assert best_of_n_kl(n) == pytest.approx(exact, abs=2e-3)
    assert best_of_n_kl(n) >= exact - 1e-9
    with pytest.raises(ValueError, match="`n` is 0"):
        best_of_n_kl(0)
