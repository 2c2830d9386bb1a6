"""DPO and its relatives compared with literal formulas, and the location of their optima."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import answer_logps, dpo_loss, implicit_rewards
from rlhf_lightning.functional.preference import LOSS_TYPES

SMOOTHINGS = [("sigmoid", 0.0), ("sigmoid", 0.1), ("sigmoid", 1.0), ("robust", 0.1), ("exo_pair", 0.1)]
SMOOTHINGS += [(loss_type, 0.0) for loss_type in LOSS_TYPES if loss_type != "sigmoid"]
WITHOUT_SMOOTHING = [loss_type for loss_type in LOSS_TYPES if loss_type not in ("sigmoid", "robust", "exo_pair")]


def _logps(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Policy chosen and rejected, reference chosen and rejected: sums over tens of tokens."""
    generator = torch.Generator().manual_seed(0)
    return [(-30 + 5 * torch.randn(6, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(4)]


def _oracle(pc: float, pr: float, rc: float, rr: float, beta: float, eps: float, loss_type: str) -> float:
    h = (pc - rc) - (pr - rr)
    if loss_type == "sigmoid":
        return (1 - eps) * math.log1p(math.exp(-beta * h)) + eps * math.log1p(math.exp(beta * h))
    if loss_type == "ipo":
        return (h - 0.5 / beta) ** 2
    if loss_type == "hinge":
        return max(0.0, 1 - beta * h)
    chosen, rejected, right = beta * (pc - rc), beta * (pr - rr), _sigmoid(beta * h)
    if loss_type == "robust":
        return (-(1 - eps) * math.log(right) + eps * math.log(1 - right)) / (1 - 2 * eps)
    if loss_type == "exo_pair":
        target = eps or 1e-3
        return right * math.log(right / (1 - target)) + (1 - right) * math.log((1 - right) / target)
    return {
        "nca_pair": -math.log(_sigmoid(chosen))
        - 0.5 * math.log(1 - _sigmoid(chosen))
        - 0.5 * math.log(1 - _sigmoid(rejected)),
        "sppo_hard": (pc - rc - 0.5 / beta) ** 2 + (pr - rr + 0.5 / beta) ** 2,
        "apo_zero": 1 - _sigmoid(chosen) + _sigmoid(rejected),
        "apo_down": _sigmoid(chosen) + 1 - _sigmoid(chosen - rejected),
    }[loss_type]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize(("loss_type", "label_smoothing"), SMOOTHINGS)
def test_equals_the_literal_formula(loss_type, label_smoothing) -> None:
    logps = _logps()
    losses = dpo_loss(*logps, beta=0.3, label_smoothing=label_smoothing, loss_type=loss_type)
    rows = zip(*(x.tolist() for x in logps), strict=True)
    assert losses.tolist() == pytest.approx([_oracle(*row, 0.3, label_smoothing, loss_type) for row in rows], abs=1e-9)


def test_at_the_reference_the_loss_is_log_2() -> None:
    pc, pr, _, _ = _logps()
    assert dpo_loss(pc, pr, pc, pr).tolist() == pytest.approx([math.log(2)] * 6)


def test_soft_labels_apply_row_by_row() -> None:
    logps = _logps()
    soft = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)
    losses = dpo_loss(*logps, label_smoothing=soft)
    for row, eps in enumerate(soft.tolist()):
        alone = dpo_loss(*(x[row : row + 1] for x in logps), label_smoothing=eps)
        assert losses[row].item() == pytest.approx(alone.item(), abs=1e-12)


def test_a_flipped_label_is_the_swapped_pair() -> None:
    pc, pr, rc, rr = _logps()
    flipped = dpo_loss(pc, pr, rc, rr, label_smoothing=1.0)
    assert torch.allclose(flipped, dpo_loss(pr, pc, rr, rc))


@pytest.mark.parametrize("loss_type", WITHOUT_SMOOTHING)
@pytest.mark.parametrize("smoothing", [0.1, 1.0, torch.zeros(6)], ids=["0.1", "1.0", "soft labels"])
def test_label_smoothing_is_refused_by_losses_without_it(loss_type, smoothing) -> None:
    with pytest.raises(ValueError, match=f"`label_smoothing` is given, but loss_type='{loss_type}' has none"):
        dpo_loss(*_logps(), label_smoothing=smoothing, loss_type=loss_type)


def test_ipo_is_least_at_its_target_log_ratio() -> None:
    """h* = 1 / (2 beta): Azar et al. 2023."""
    beta, zero = 0.25, torch.zeros(1, dtype=torch.float64)
    h = torch.tensor([1 / (2 * beta)], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(h, zero, zero, zero, beta, loss_type="ipo")
    loss.sum().backward()
    assert h.grad.item() == pytest.approx(0, abs=1e-12)
    assert loss.item() == 0
    for step in (-0.1, 0.1):
        assert dpo_loss(h + step, zero, zero, zero, beta, loss_type="ipo").item() > loss.item()


def test_an_answer_counts_by_its_sum_and_for_ipo_by_its_mean_per_token() -> None:
    sums, lengths = torch.tensor([-6.0, -1.0, 0.0], dtype=torch.float16), torch.tensor([3, 1, 0])
    for loss_type, expected in (("sigmoid", [-6, -1, 0]), ("hinge", [-6, -1, 0]), ("ipo", [-2, -1, 0])):
        found = answer_logps(sums, lengths, loss_type)
        assert found.tolist() == expected
        assert found.dtype == torch.float32
    with pytest.raises(ValueError, match="`loss_type` is 'kto'"):
        answer_logps(sums, lengths, "kto")
    with pytest.raises(ValueError, match=r"`lengths` has shape \[2\]"):
        answer_logps(sums, lengths[:2])


@pytest.mark.parametrize("probability", [0.5, 0.7, 0.99])
def test_sigmoid_with_soft_labels_is_least_where_the_implicit_margin_is_the_log_odds(probability) -> None:
    beta, zero = 0.25, torch.zeros(1, dtype=torch.float64)
    h = torch.tensor([math.log(probability / (1 - probability)) / beta], dtype=torch.float64, requires_grad=True)
    dpo_loss(h, zero, zero, zero, beta, torch.tensor([1 - probability], dtype=torch.float64)).sum().backward()
    assert h.grad.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("flipped", [0.05, 0.2, 0.4])
def test_robust_is_in_expectation_over_flipped_labels_the_loss_of_the_true_ones(flipped) -> None:
    pc, pr, rc, rr = _logps()
    noisy = (1 - flipped) * dpo_loss(pc, pr, rc, rr, 0.3, flipped, "robust")
    noisy = noisy + flipped * dpo_loss(pr, pc, rr, rc, 0.3, flipped, "robust")
    assert torch.allclose(noisy, dpo_loss(pc, pr, rc, rr, 0.3))
    with pytest.raises(ValueError, match=r"expected below 0\.5 for loss_type='robust'"):
        dpo_loss(pc, pr, rc, rr, 0.3, 0.5, "robust")


def test_exo_is_least_where_the_policy_gives_the_labels_probabilities() -> None:
    beta, zero = 0.25, torch.zeros(1, dtype=torch.float64)
    h = torch.tensor([math.log(0.9 / 0.1) / beta], dtype=torch.float64, requires_grad=True)
    loss = dpo_loss(h, zero, zero, zero, beta, 0.1, "exo_pair")
    loss.sum().backward()
    assert h.grad.item() == pytest.approx(0, abs=1e-12)
    assert loss.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("loss_type", "chosen", "rejected"),
    [("apo_zero", -1, 1), ("apo_down", 1, 1), ("sppo_hard", -1, 1), ("nca_pair", -1, 1)],
)
def test_where_the_losses_of_each_reward_push_at_the_reference(loss_type, chosen, rejected) -> None:
    """By the sign of the slope in each log-ratio: -1 makes the answer more probable."""
    ratios = [torch.zeros(1, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    zero = torch.zeros(1, dtype=torch.float64)
    dpo_loss(*ratios, zero, zero, 0.1, loss_type=loss_type).sum().backward()
    if loss_type == "apo_down":  # in sigmoid(r_c) + sigmoid(r_r - r_c), the two slopes in r_c cancel at the reference
        assert ratios[0].grad.item() == pytest.approx(0, abs=1e-12)
    else:
        assert math.copysign(1, ratios[0].grad.item()) == chosen
    assert math.copysign(1, ratios[1].grad.item()) == rejected


def test_hinge_stops_pushing_beyond_its_margin() -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    h = torch.tensor([3.9, 4.1], dtype=torch.float64, requires_grad=True)
    dpo_loss(h, zero, zero, zero, beta=0.25, loss_type="hinge").sum().backward()
    assert h.grad.tolist() == [-0.25, 0.0]


@pytest.mark.parametrize(("loss_type", "label_smoothing"), SMOOTHINGS)
def test_gradients(loss_type, label_smoothing) -> None:
    logps = [x.requires_grad_() for x in _logps()]
    assert torch.autograd.gradcheck(lambda *x: dpo_loss(*x, 0.3, label_smoothing, loss_type), logps)


def test_extreme_margins_stay_finite() -> None:
    big, zero = torch.tensor([1e5, -1e5]).requires_grad_(), torch.zeros(2)
    loss = dpo_loss(big, zero, zero, zero, label_smoothing=0.1)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(big.grad).all()


def test_half_precision_is_computed_in_float32() -> None:
    half = _logps(torch.bfloat16)
    losses = dpo_loss(*half)
    assert losses.dtype == torch.float32
    assert torch.allclose(losses, dpo_loss(*(x.double() for x in half)).float(), atol=1e-5)


def test_implicit_rewards_differ_by_the_margin_of_the_loss() -> None:
    pc, pr, rc, rr = _logps()
    margins = implicit_rewards(pc, rc, beta=0.3) - implicit_rewards(pr, rr, beta=0.3)
    assert torch.allclose(torch.log1p(torch.exp(-margins)), dpo_loss(pc, pr, rc, rr, beta=0.3))


def test_bad_arguments_are_refused() -> None:
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"`reference_rejected_logps` has shape \[3, 1\]; expected \[3\]"):
        dpo_loss(x, x, x, x[:, None])
    with pytest.raises(ValueError, match=r"`policy_chosen_logps` has shape \[3, 2\]; expected 1 dimension"):
        dpo_loss(*[torch.zeros(3, 2)] * 4)
    with pytest.raises(ValueError, match=r"`label_smoothing` has shape \[1\]; expected \[3\]"):
        dpo_loss(x, x, x, x, label_smoothing=torch.zeros(1))
    with pytest.raises(ValueError, match=r"`label_smoothing` is 1\.1"):
        dpo_loss(x, x, x, x, label_smoothing=1.1)
    with pytest.raises(ValueError, match="`beta` is 0"):
        dpo_loss(x, x, x, x, beta=0)
    with pytest.raises(ValueError, match="`loss_type` is 'kto'; expected one of sigmoid, ipo, hinge"):
        dpo_loss(x, x, x, x, loss_type="kto")
    with pytest.raises(ValueError, match=r"`reference_logps` has shape \[1\]"):
        implicit_rewards(x, x[:1])
