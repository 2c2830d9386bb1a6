from __future__ import annotations

import pytest
import torch

from rlhf_lightning.models import NF4, LoRA
from rlhf_lightning.models.adapters import add_adapter
from rlhf_lightning.planning.networks import Network, four_bit_bytes
from tests.tiny import tiny_model


def network(family="llama", layers=2, **settings) -> Network:
    model = tiny_model(family, layers=layers)
    return Network(f"{family} {layers}", model.config, "CAUSAL_LM", settings.pop("dtype", torch.float32), **settings)


def parameter_bytes(model, trainable=(True, False)) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad in trainable)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", [2, 5])
def test_weights_are_those_of_the_loaded_model(family, layers):
    weights = network(family, layers).weights()
    assert weights.trainable == weights.total == parameter_bytes(tiny_model(family, layers=layers))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", [2, 5])
def test_an_adapter_is_counted_as_peft_makes_it(family, layers):
    lora = LoRA(rank=4)
    real = add_adapter(tiny_model(family, layers=layers), lora, "CAUSAL_LM", None)
    weights = network(family, layers, lora=lora).weights()
    assert weights.trainable == parameter_bytes(real, (True,)) > 0
    assert weights.frozen == parameter_bytes(real, (False,))
    assert network(family, layers, lora=lora).adapter_bytes() == weights.trainable


def test_a_reward_model_has_a_head_and_its_adapter_trains_it():
    lora = Network("r", tiny_model().config, "SEQ_CLS", torch.float32, lora=LoRA(rank=4))
    assert lora.weights().trainable == lora.adapter_bytes() + 32 * 4


def test_half_precision_halves_and_keeps_the_adapter_whole():
    assert network(dtype=torch.bfloat16).weights().total * 2 == network().weights().total
    lora = {"lora": LoRA(rank=4)}
    mixed, half = (
        network(dtype=torch.bfloat16, cast_to=cast, **lora).weights().trainable for cast in (None, torch.bfloat16)
    )
    assert mixed == half == network(**lora).weights().trainable


@pytest.mark.parametrize("double_quant", [False, True])
def test_four_bits_are_those_of_bitsandbytes(double_quant):
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(torch.randn(128, 512), quant_type="nf4", compress_statistics=double_quant)
    scales = state.absmax.numel() * state.absmax.element_size()
    scales += state.state2.absmax.numel() * 4 if double_quant else 0
    assert four_bit_bytes(128 * 512, double_quant) == packed.numel() + scales


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_embeddings_and_output_layer_stay_out_of_4_bits(family):
    whole, quantised = network(family).weights(), network(family, lora=LoRA(), nf4=NF4()).weights()
    embeddings = sum(
        p.numel() * 4 for name, p in tiny_model(family).named_parameters() if "embed" in name or "wte" in name
    )
    assert embeddings < quantised.frozen < whole.total / 2


def test_layers_of_a_kind_are_counted_alike():
    deep = network(layers=5)
    assert deep.weights().total - network(layers=4).weights().total == deep.layer().total
