"""KTO, ORPO's odds ratio and SimPO compared with literal formulas, and at the edges of probability."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import kto_loss, odds_ratio_loss, simpo_loss


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _numbers(count: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kl", [0.0, 0.7, -0.4])
def test_kto_is_the_literal_formula(kl) -> None:
    log_ratios, desirable = _numbers(8, 0, 3), torch.tensor([True, False] * 4)
    found = kto_loss(log_ratios, desirable, kl, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    z = max(0.0, kl)
    expected = [
        1.5 * (1 - _sigmoid(0.3 * (r - z))) if wanted else 0.5 * (1 - _sigmoid(0.3 * (z - r)))
        for r, wanted in zip(log_ratios.tolist(), desirable.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_the_first_kto_loss_is_one_half() -> None:
    assert kto_loss(torch.zeros(4), torch.tensor([True, False, True, False]), torch.tensor(0.0)).tolist() == [0.5] * 4


def test_no_gradient_flows_into_ktos_kl_and_each_answer_is_pushed_its_way() -> None:
    log_ratios, kl = torch.zeros(2, requires_grad=True), torch.tensor(0.2, requires_grad=True)
    kto_loss(log_ratios, torch.tensor([True, False]), kl).sum().backward()
    assert kl.grad is None
    assert log_ratios.grad[0] < 0 < log_ratios.grad[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"desirable": torch.ones(2)}, "`desirable` has dtype"),
        ({"desirable": torch.ones(3, dtype=torch.bool)}, "`desirable` has shape"),
        ({"kl": torch.zeros(2)}, "`kl` has shape"),
        ({"beta": 0.0}, "`beta` is 0.0"),
        ({"desirable_weight": -1.0}, "`desirable_weight` is -1.0"),
    ],
)
def test_kto_refuses_what_it_cannot_read(change, message) -> None:
    given = {"log_ratios": torch.zeros(2), "desirable": torch.ones(2, dtype=torch.bool), "kl": 0.0, **change}
    with pytest.raises(ValueError, match=message):
        kto_loss(**given)


def test_odds_ratios_are_the_literal_formula() -> None:
    chosen, rejected = -_numbers(20, 1).abs() - 1e-3, -_numbers(20, 2, 3).abs() - 1e-3

    def odds(m: float) -> float:
        return math.exp(m) / (1 - math.exp(m))

    expected = [
        -math.log(_sigmoid(math.log(odds(c) / odds(r))))
        for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]
    assert odds_ratio_loss(chosen, rejected).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pair", [(0.0, -1.0), (-1.0, 0.0), (0.0, 0.0), (-1e-8, -1e-30), (-80.0, -1e-3), (-1e4, -2e4)])
def test_odds_ratios_and_gradients_are_finite_at_the_edges(dtype, pair) -> None:
    chosen, rejected = (torch.tensor([m], dtype=dtype, requires_grad=True) for m in pair)
    loss = odds_ratio_loss(chosen, rejected)
    loss.sum().backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(bool(x.isfinite().all()) for x in (loss, chosen.grad, rejected.grad))
    assert loss.item() >= 0


def test_odds_ratios_keep_their_precision_on_both_sides_of_the_seam() -> None:
    """Compared with float64, in float32, from improbable to nearly certain."""
    logps = -torch.logspace(-5, 1.5, 60, dtype=torch.float64)
    wanted = odds_ratio_loss(logps, torch.full_like(logps, -1.0))
    found = odds_ratio_loss(logps.float(), torch.full((60,), -1.0))
    assert torch.allclose(found.double(), wanted, rtol=2e-6, atol=0)


def test_simpo_is_the_literal_formula_and_its_margin_a_share_of_beta() -> None:
    chosen, rejected = -_numbers(8, 3).abs(), -_numbers(8, 4).abs()
    found = simpo_loss(chosen, rejected, beta=2.5, gamma_beta_ratio=0.4)
    expected = [
        -math.log(_sigmoid(2.5 * (c - r) - 1.0)) for c, r in zip(chosen.tolist(), rejected.tolist(), strict=True)
    ]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match=r"`gamma_beta_ratio` is -0\.1"):
        simpo_loss(chosen, rejected, gamma_beta_ratio=-0.1)
