"""Masked statistics compared with plain Python."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_lightning.functional import masked_mean, masked_var, masked_whiten

NAN = float("nan")


@pytest.fixture
def ragged() -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Return [B, T] values with NaN and infinity outside the mask, the mask, and the valid values as a list."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 7, generator=generator, dtype=torch.float64) * 2 + 3
    mask = (torch.arange(7) < torch.tensor([7, 1, 4, 6])[:, None]).float()
    valid = [x[row, t].item() for row in range(4) for t in range(7) if mask[row, t]]
    x[mask == 0] = torch.tensor([NAN, math.inf, -math.inf], dtype=torch.float64).repeat(4)[: int((mask == 0).sum())]
    return x, mask, valid


def test_mean_and_variance_equal_python_over_valid_entries(ragged) -> None:
    x, mask, valid = ragged
    mean = sum(valid) / len(valid)
    variance = sum((value - mean) ** 2 for value in valid) / len(valid)
    assert masked_mean(x, mask).item() == pytest.approx(mean, abs=1e-12)
    assert masked_var(x, mask).item() == pytest.approx(variance, abs=1e-12)


@pytest.mark.parametrize("dim", [0, 1, (0, 1)])
def test_reducing_a_dimension_equals_reducing_each_slice(ragged, dim) -> None:
    x, mask, _ = ragged
    slices = {0: zip(x.T, mask.T, strict=True), 1: zip(x, mask, strict=True), (0, 1): [(x, mask)]}[dim]
    slices = list(slices)
    for function in (masked_mean, masked_var):
        expected = torch.stack([function(part, its_mask) for part, its_mask in slices])
        assert torch.equal(function(x, mask, dim=dim).reshape(-1), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_mask_of_any_type_means_the_same(ragged, dtype) -> None:
    x, mask, _ = ragged
    assert torch.equal(masked_mean(x, mask.to(dtype)), masked_mean(x, mask))


@pytest.mark.parametrize(("location", "scale"), [(0.0, 1.0), (3.0, 2.0), (-50.0, 0.5), (1000.0, 30.0)])
def test_whitened_has_mean_0_and_std_1_over_valid_tokens_in_float32(location, scale) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(40) < torch.randint(1, 41, (64, 1), generator=generator)).float()
    x = torch.randn(64, 40, generator=generator) * scale + location
    x[mask == 0] = NAN
    valid = masked_whiten(x, mask)[mask == 1].double()
    assert abs(valid.mean().item()) <= 1e-6
    assert valid.std(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_whitening_without_centering_keeps_the_mean(ragged) -> None:
    x, mask, valid = ragged
    whitened = masked_whiten(x, mask, center=False)
    assert masked_mean(whitened, mask).item() == pytest.approx(sum(valid) / len(valid), abs=1e-9)
    assert masked_var(whitened, mask).item() == pytest.approx(1, abs=1e-6)


def test_whitened_is_0_off_the_mask_and_does_not_depend_on_what_is_there(ragged) -> None:
    x, mask, _ = ragged
    whitened = masked_whiten(x, mask)
    assert (whitened[mask == 0] == 0).all()
    assert torch.equal(whitened, masked_whiten(x.masked_fill(mask == 0, 7.0), mask))


def test_equal_values_whiten_to_0() -> None:
    assert torch.equal(masked_whiten(torch.full((2, 3), 5.0), torch.ones(2, 3)), torch.zeros(2, 3))


def test_empty_mask_gives_0() -> None:
    x, mask = torch.full((2, 3), NAN), torch.zeros(2, 3)
    assert masked_mean(x, mask).item() == 0
    assert masked_var(x, mask).item() == 0
    assert torch.equal(masked_mean(x, mask, dim=1), torch.zeros(2))
    assert torch.equal(masked_whiten(x, mask), torch.zeros(2, 3))


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten])
def test_gradients_are_right_and_0_off_the_mask(ragged, function) -> None:
    x, mask, _ = ragged
    x = x.requires_grad_()
    function(x, mask).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert (x.grad[mask == 0] == 0).all()
    clean = x.detach().masked_fill(mask == 0, 0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x, mask), clean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype) -> None:
    ones = torch.ones(1, 4097, dtype=dtype)  # a float16 sum of these is 4096
    ones[0, 0] = 2.0
    mean = masked_mean(ones, torch.ones(1, 4097))
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(4098 / 4097, rel=1e-6)
    assert masked_whiten(ones, torch.ones(1, 4097)).dtype == torch.float32


@pytest.mark.parametrize("function", [masked_mean, masked_var, masked_whiten])
def test_a_mask_that_would_broadcast_is_refused(function) -> None:
    with pytest.raises(ValueError, match=r"`mask` has shape \[2, 1\]; expected \[2, 3\]"):
        function(torch.ones(2, 3), torch.ones(2, 1))
