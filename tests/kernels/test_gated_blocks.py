"""Blocks that recompute their elementwise parts: bitwise the same, with less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.kernels.families import GATED_FAMILIES
from rlhf_lightning.kernels.gated_blocks import GatedMLP, keep_less
from rlhf_lightning.models import LoRA, load_causal_lm
from rlhf_lightning.planning.live_bytes import LiveBytes
from tests.tiny import tiny_model


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the gradients of a loss that reads all logits."""
    model.zero_grad()
    (model(ids).logits ** 2).mean().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", GATED_FAMILIES)
def test_values_and_gradients_are_the_same_bits(family: str) -> None:
    model, ids = tiny_model(family.lower()), torch.randint(5, 20, (2, 7))
    logits, before = model(ids).logits, gradients(model, ids)
    keep_less(model)
    assert any(type(module) is GatedMLP for module in model.modules())
    assert torch.equal(model(ids).logits, logits)
    after = gradients(model, ids)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_of_the_widest_tensors_half_are_kept(shape: tuple[int, ...]) -> None:
    model = tiny_model("llama")
    block, config = model.model.layers[0].mlp, model.config
    x = torch.randn(*shape, config.hidden_size, requires_grad=True)
    kept = []
    for _ in range(2):
        with LiveBytes(0) as live:
            out = block(x)
            kept.append(sum(live.now) - out.nbytes)
        keep_less(model)
    wide = 6 * config.intermediate_size * x.element_size()
    assert kept == [4 * wide, 2 * wide]


def test_under_activation_checkpointing_a_block_stays_as_it_is(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    for checkpointing in (True, False):
        model = load_causal_lm(tmp_path, activation_checkpointing=checkpointing)
        assert (type(model.model.layers[0].mlp) is GatedMLP) is not checkpointing


def test_an_adapter_gets_the_same_gradients(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    ids = torch.randint(5, 20, (2, 7))
    results = []
    for kernels in (["gated_blocks"], "none"):
        torch.manual_seed(0)
        results.append(gradients(load_causal_lm(tmp_path, adapter=LoRA(rank=4), kernels=kernels), ids))
    assert results[0] and results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_a_gradient_can_be_taken_twice() -> None:
    model = tiny_model("llama")
    keep_less(model)
    block = next(module for module in model.modules() if type(module) is GatedMLP)
    x = torch.randn(3, model.config.hidden_size, requires_grad=True)
    out = block(x).sum()
    first = torch.autograd.grad(out, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, x)[0])
