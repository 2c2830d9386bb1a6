"""Families whose past our cache cannot hold are sampled without one, with the right probabilities."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.models import ValueHead
from rlhf_lightning.rollout import NativeEngine, SamplingSettings
from rlhf_lightning.rollout.native import Decoding
from rlhf_lightning.rollout.uncached import UncachedDecoding, decoding_of
from tests.tiny import FAMILIES, tiny_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15], [3, 4]]
SIZE = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "initializer_range": 0.3, "pad_token_id": 0}
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {"state_size": 8, "time_step_rank": 4},
    "rwkv": {"attention_hidden_size": 32, "intermediate_size": 64},
    "pegasus": {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}


def recurrent(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZE, **RECURRENT[kind]}))


@pytest.mark.parametrize("family", FAMILIES)
def test_families_with_keys_and_values_are_decoded_with_the_cache(family: str) -> None:
    assert decoding_of(tiny_model(family)) is Decoding


@pytest.mark.parametrize("kind", [*RECURRENT])
def test_sampled_log_probabilities_are_those_of_plain_forward_passes(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = recurrent(kind)
    engine = NativeEngine(pad_id=0, eos_ids=[20], batch_size=3)
    with caplog.at_level(logging.WARNING, "rlhf_lightning"):
        engine.sync(model)
        engine.sync(model)
    assert engine.decoding is UncachedDecoding
    assert len([r for r in caplog.records if f"{kind}: its cache does not fit" in r.getMessage()]) == 1
    out = engine.generate(PROMPTS, SamplingSettings(max_new_tokens=6), torch.Generator().manual_seed(0))
    model.eval()
    for prompt, tokens, mask, logprobs in zip(PROMPTS, out.tokens, out.mask, out.logprobs, strict=True):
        response = tokens[mask.bool()]
        row = torch.tensor([prompt + response.tolist()])
        with torch.no_grad():
            whole = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0].log_softmax(-1)
        expected = whole[len(prompt) - 1 : -1].gather(1, response[:, None])[:, 0]
        torch.testing.assert_close(logprobs[mask.bool()], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_a_cache_a_family_gets_what_it_gets_with_one(family: str) -> None:
    engine = NativeEngine(pad_id=0, eos_ids=[20], batch_size=len(PROMPTS))
    engine.value_head = ValueHead(32)
    torch.nn.init.normal_(engine.value_head.linear.weight)
    engine.sync(tiny_model(family))
    outputs = []
    for decoding in (Decoding, UncachedDecoding):
        engine.decoding = decoding
        outputs.append(engine.generate(PROMPTS, SamplingSettings(5, temperature=0.0)))
    cached, uncached = outputs
    assert torch.equal(cached.tokens, uncached.tokens)
    torch.testing.assert_close(cached.logprobs, uncached.logprobs, atol=1e-5, rtol=0)
    assert cached.values is not None and uncached.values is not None
    torch.testing.assert_close(cached.values, uncached.values, atol=1e-4, rtol=0)
