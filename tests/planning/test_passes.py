"""Tracing on fake tensors matches the real pass."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.kernels.gated_blocks import keep_less
from rlhf_lightning.kernels.norms import use_short_norms
from rlhf_lightning.models import LoRA, predict_tokens
from rlhf_lightning.models.adapters import add_adapter
from rlhf_lightning.planning.live_bytes import LiveBytes
from rlhf_lightning.planning.networks import Network
from rlhf_lightning.planning.passes import Loss, Rows, forward_pass, generation, training_step
from rlhf_lightning.rollout import NativeEngine, SamplingSettings
from tests.tiny import tiny_model

ROWS = Rows(count=4, length=24, scored=23)
LAYERS = 5


def network(family="llama", **settings) -> Network:
    return Network(f"{family} passes", tiny_model(family, layers=LAYERS).config, "CAUSAL_LM", torch.float32, **settings)


def real(family, lora=None, checkpointing=False):
    model = tiny_model(family, layers=LAYERS)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    else:
        keep_less(model)
    use_short_norms(model)
    if lora is not None:
        model = add_adapter(model, lora, "CAUSAL_LM", None)
    return model.train()


def batch():
    ids = torch.ones(ROWS.count, ROWS.length, dtype=torch.long)
    flags = torch.ones_like(ids)
    flags[:, 0] = 0
    return ids, flags


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "settings", [{}, {"lora": LoRA(rank=4)}, {"lora": LoRA(rank=4), "activation_checkpointing": True}]
)
def test_a_step_followed_through_two_layers_is_the_real_step_through_five(family, settings):
    model = real(family, settings.get("lora"), settings.get("activation_checkpointing", False))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with LiveBytes(model.config.vocab_size) as live:
        loss = predict_tokens(model, *batch()).logprobs.sum()
        kept = sum(live.now)
        live.mark("forward")
        loss.backward()
    step = training_step(network(family, **settings), ROWS, Loss())
    assert step.kept == pytest.approx(kept, rel=0.05)
    assert sum(step.forward) == pytest.approx(sum(live.marks[0][1]), rel=0.05)
    assert sum(step.backward) == pytest.approx(sum(live.peak), rel=0.05)


def test_without_gradients_nothing_is_kept():
    kept = training_step(network(), ROWS, Loss()).kept
    assert sum(forward_pass(network(), ROWS, Loss())) < kept / 2


def test_checkpointing_keeps_one_state_a_layer():
    lora = {"lora": LoRA(rank=4)}
    all_kept = training_step(network(**lora), ROWS, Loss())
    few_kept = training_step(network(**lora, activation_checkpointing=True), ROWS, Loss())
    state = ROWS.count * ROWS.length * 32 * 4
    assert LAYERS * state <= few_kept.kept < all_kept.kept / 4


def test_keys_and_values_are_counted_to_the_byte():
    rows, prompt, response = 4, 6, 10
    figures = generation(network(), rows, prompt, response, None)
    config = tiny_model(layers=LAYERS).config
    values = 2 * LAYERS * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    assert figures.cache == rows * (prompt + response) * values * 4


def test_the_real_engine_stays_within_the_plan_of_generation():
    model, rows, prompt, response = real("llama"), 16, 8, 24
    engine = NativeEngine(pad_id=0, eos_ids=[10_000])  # nothing ends early
    engine.sync(model)
    with LiveBytes(model.config.vocab_size) as live:
        engine.generate([[5] * prompt] * rows, SamplingSettings(max_new_tokens=response), torch.Generator())
    figures = generation(network(), rows, prompt, response, None)
    assert figures.cache + sum(figures.step) == pytest.approx(sum(live.peak), rel=0.15)
