"""Dropout is switched off under any name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import disable_dropout
from rlhf_lightning.models.dropout import training_differs
from tests.tiny import tiny_model

SIZE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
KINDS = ["starcoder2", "bloom", "falcon", "opt", "phi", "gptj", "biogpt", "codegen", "jetmoe"]


def noisy(kind: str, **extra: Any) -> nn.Module:
    """Return a random model with every dropout of its configuration at 0.5, as a checkpoint may have it."""
    size = {**SIZE, "rotary_dim": 4} if kind in ("gptj", "codegen") else SIZE
    config = AutoConfig.for_model(kind, **size, **extra)
    for name, value in config.to_dict().items():
        if isinstance(value, float) and ("drop" in name or "jitter" in name):
            setattr(config, name, 0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.train()


@pytest.mark.parametrize("kind", KINDS)
def test_two_passes_in_training_mode_are_equal_and_those_of_evaluation(kind: str) -> None:
    model: Any = noisy(kind)
    saved = model.config.to_dict()
    assert training_differs(model)
    disable_dropout(model)
    ids = torch.randint(3, 60, (1, 20))
    with torch.no_grad():
        first, second, evaluated = (
            model.train(flag)(input_ids=ids, use_cache=False).logits for flag in (True, True, False)
        )
    assert torch.equal(first, second)
    torch.testing.assert_close(first, evaluated, atol=1e-5, rtol=0)
    assert model.config.to_dict() == saved  # the saved model keeps its configuration


def test_noise_that_cannot_be_switched_off_is_refused() -> None:
    model: Any = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda m, _, out: out + torch.rand_like(out) if m.training else out)
    with pytest.raises(UserError, match=r"LlamaForCausalLM.*training mode"):
        disable_dropout(model)


def test_the_noise_of_a_router_is_off() -> None:
    model: Any = noisy("mixtral", num_key_value_heads=2, num_local_experts=2)
    assert model.model.layers[0].mlp.jitter_noise == 0.5
    disable_dropout(model)
    assert not training_differs(model)


def test_a_threshold_that_is_called_noise_stays() -> None:
    """PhiMoE's router reads `router_jitter_noise` in evaluation mode too, and samples its experts in training mode."""
    model: Any = noisy("phimoe", num_key_value_heads=2, num_local_experts=4, initializer_range=0.2)
    before = [module.router_jitter_noise for module in model.modules() if hasattr(module, "router_jitter_noise")]
    with pytest.raises(UserError, match=r"phimoe.*training mode"):
        disable_dropout(model)
    assert before == [
        module.router_jitter_noise for module in model.modules() if hasattr(module, "router_jitter_noise")
    ]


def test_numbers_that_are_drawn_and_not_used_do_no_harm() -> None:
    model: Any = tiny_model("llama")
    model.model.norm.register_forward_hook(lambda m, _, out: (torch.rand(1), out)[1])
    disable_dropout(model)


def test_a_copy_of_a_network_without_dropout_has_none() -> None:
    import copy

    model = noisy("falcon")
    disable_dropout(model)
    assert not training_differs(copy.deepcopy(model))
