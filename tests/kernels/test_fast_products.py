"""Linear layers that use oneDNN have the outputs and gradients of nn.Linear; everything else is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_lightning.kernels import fast_products, machine
from rlhf_lightning.kernels.fast_products import FastLinear, packed_weights, product, suits, use_fast_products
from rlhf_lightning.models import load_causal_lm
from tests.tiny import tiny_model

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture(autouse=True)
def faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a processor on which it is worthwhile."""
    monkeypatch.setattr(machine, "onednn_is_faster", lambda: True)


def layer(outputs: int, inputs: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, bias)


def fast(linear: nn.Linear) -> nn.Linear:
    use_fast_products(nn.ModuleList([linear]))
    assert isinstance(linear, FastLinear)
    return linear


def values_and_gradients(linear: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = linear(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    (y * weights).sum().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in linear.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", [(300, 128), (3, 100, 128), (1, 301, 128)])
@pytest.mark.parametrize("wide", [160, 112])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_double_precision(shape: tuple[int, ...], wide: int, bias: bool) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    ours, exact = fast(layer(wide, 128, bias)), layer(wide, 128, bias).double()
    assert suits(x, ours.weight)
    found, wanted = values_and_gradients(ours, x), values_and_gradients(exact, x.double())
    assert len(found) == len(wanted) == (4 if bias else 3)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=3e-6 * float(b.abs().max()))


def test_of_frozen_weights_nothing_but_the_inputs_gradient_is_computed_and_no_input_is_kept() -> None:
    frozen = fast(layer(160, 128)).requires_grad_(False)
    x = torch.randn(300, 128, requires_grad=True)
    y = frozen(x)
    assert y.grad_fn is not None and y.grad_fn.saved_tensors[0] is None  # type: ignore[attr-defined]
    y.sum().backward()
    assert x.grad is not None and frozen.weight.grad is None
    torch.testing.assert_close(x.grad, frozen.weight.sum(0).expand(300, 128), rtol=1e-5, atol=1e-5)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    seen: list[Any] = []
    monkeypatch.setattr(fast_products.Product, "apply", lambda *args: seen.append(args) or args[0] @ args[1].T)
    return seen


@pytest.mark.parametrize(
    ("x", "asked"),
    [
        (torch.randn(300, 128), True),
        (torch.randn(15, 2**15), False),  # too few rows
        (torch.randn(100, 128), False),  # too little work
        (torch.randn(300, 128, dtype=torch.float64), False),
        (torch.randn(300, 128, device="meta"), False),
    ],
)
def test_only_large_float32_products_on_a_cpu_ask(x: Tensor, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls(monkeypatch)
    fast(layer(160, x.shape[1], bias=False)).to(x.device, x.dtype)(x)
    assert bool(seen) is asked


def test_packed_weights_give_the_same_and_are_gone_afterwards() -> None:
    network = nn.Sequential(fast(layer(256, 512)), fast(layer(8, 256)))  # the second is too small
    x = torch.randn(3, 5, 512)
    with torch.no_grad():
        plain = network(x)
        with packed_weights(network, 5):
            assert network[0].packed is not None and network[1].packed is None
            torch.testing.assert_close(network(x), plain, rtol=0, atol=1e-5)
            network[0].packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(256, 512), 5)
            assert torch.equal(network(x), network[1](network[0].bias.expand(3, 5, 256)))  # it is read
    with packed_weights(network, 5):
        network(x).sum().backward()
    assert network[0].weight.grad is not None and network[0].packed is None


def test_no_weights_are_packed_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16), packed_weights(linear := fast(layer(256, 512)), 5):
        assert linear.packed is None


def test_autocast_keeps_its_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(layer(160, 128))(torch.randn(300, 128)).dtype == torch.bfloat16


def test_layers_of_another_class_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    use_fast_products(other := Other(4, 4))
    assert type(other) is Other


def test_a_loaded_model_asks_and_is_saved_as_before(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "before")
    model = load_causal_lm(tmp_path / "before")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear and all(isinstance(module, FastLinear) for module in linear)
    model.save_pretrained(tmp_path / "after")
    again = type(model).from_pretrained(tmp_path / "after")
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))


def test_the_product_of_matrices() -> None:
    left, right = torch.randn(300, 128), torch.randn(128, 160)
    torch.testing.assert_close(product(left, right), left @ right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(product(left[:2], right), left[:2] @ right)


def test_suits_wants_whole_parameters() -> None:
    x = torch.randn(300, 128)
    assert suits(x, nn.Parameter(torch.randn(160, 128)))
    assert not suits(x, torch.randn(160, 128))  # a shard, for example, is not a plain parameter
