"""Norms with an explicit backward pass: the values and gradients of transformers', with less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_lightning.kernels.norms import RMSNorm, ShortNorm, use_short_norms
from rlhf_lightning.models import load_causal_lm, load_reward_model
from rlhf_lightning.planning.live_bytes import LiveBytes
from tests.tiny import tiny_model

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def norms(network: nn.Module) -> list[Any]:
    return [module for module in network.modules() if isinstance(module, ShortNorm)]


def a_norm(width: int = 12) -> Any:
    """Return transformers' own norm, with weights other than 1."""
    norm = tiny_model("llama").model.norm.__class__(width, eps=0.1)
    nn.init.normal_(norm.weight)
    return norm


def test_gradients_are_those_of_differences() -> None:
    x, weight = torch.randn(2, 3, 5).double().requires_grad_(), torch.randn(5).double().requires_grad_()
    assert torch.autograd.gradcheck(RMSNorm.apply, (x, weight, 0.1))


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("shape", [(7,), (2, 5)])
def test_values_and_gradients_are_those_of_transformers(shape: tuple[int, ...], trained: bool) -> None:
    norm = a_norm().requires_grad_(trained)
    x, wanted = torch.randn(*shape, 12, requires_grad=True), torch.randn(*shape, 12)
    results = []
    for _ in range(2):
        x.grad = norm.weight.grad = None
        y = norm(x)
        y.backward(wanted)
        results.append((y, x.grad, norm.weight.grad))
        use_short_norms(norm)
    assert isinstance(norm, ShortNorm)
    for before, after in zip(*results, strict=True):
        assert (before is None) is (after is None)
        if before is not None:
            torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loaded_networks_have_them(family: str, tmp_path: Path) -> None:
    plain = tiny_model(family)
    plain.save_pretrained(tmp_path)
    model, ids = load_causal_lm(tmp_path), torch.randint(5, 20, (2, 7))
    assert len(norms(model)) == sum(type(module).__name__.endswith("RMSNorm") for module in plain.modules()) > 0
    assert len(norms(load_reward_model(tmp_path))) == len(norms(model))
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma", "gpt2"])
def test_norms_of_another_form_stay(family: str) -> None:
    model = tiny_model(family)
    use_short_norms(model)
    assert not norms(model)


def test_nothing_but_the_input_is_kept() -> None:
    norm = a_norm()
    use_short_norms(norm)
    x = torch.randn(50, 12, requires_grad=True)
    with LiveBytes(0) as live:
        y = norm(x)
        kept = sum(live.now) - y.nbytes
    assert kept == 0


def test_in_other_types_nothing_changes() -> None:
    norm = a_norm().bfloat16()
    x = torch.randn(50, 12).bfloat16()
    before = norm(x)
    use_short_norms(norm)
    assert torch.equal(norm(x), before)
