"""A loaded model is correct, or refused with the family, the difference and the tolerance."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import ActorCritic, LoRA, load_causal_lm, output_head, predict_tokens
from rlhf_lightning.models import forward as forward_module
from rlhf_lightning.models.rounding import TOLERANCE, distance, noise_of
from rlhf_lightning.models.self_check import check_causal_lm, plain_forward
from tests.tiny import FAMILIES, tiny_model

SIZE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "eos_token_id": 1,
}

FALCON_H1 = {
    "num_key_value_heads": 2,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "lm_head_multiplier": 2.5,
}


def saved(folder: Path, model: PreTrainedModel) -> str:
    model.save_pretrained(folder)
    return str(folder)


def made(kind: str, **config: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZE, **config}))


def plain_logprobs(model: Any, ids: Tensor, flags: Tensor) -> Tensor:
    """Return log-probabilities of the flagged tokens, by transformers on each row alone, without padding."""
    found = []
    for row, flag in zip(ids, flags, strict=True):
        length = int(flag.nonzero().max()) + 1
        logits = model(input_ids=row[None, :length], attention_mask=torch.ones(1, length)).logits[0].float()
        chosen = logits.log_softmax(-1)[:-1].gather(1, row[1:length, None])[:, 0]
        found.append(chosen[flag[1:length].bool()])
    return torch.cat(found)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 29, (3, 12), generator=generator)
    flags = torch.zeros_like(ids)
    flags[0, 5:], flags[1, 2:8], flags[2, 4:10] = 1, 1, 1
    return ids, flags


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_ours_passes_and_keeps_its_linear_head(family: str) -> None:
    model = tiny_model(family)
    check_causal_lm(model, plain_forward(model))
    assert not forward_module.uses_own_head(model)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("falcon_h1", FALCON_H1),
        ("recurrent_gemma", {"block_types": ["recurrent", "recurrent", "attention"], "attention_window_size": 8}),
        ("bert", {"is_decoder": True}),
    ],
)
def test_an_output_layer_that_does_more_is_the_models_own(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    model = load_causal_lm(saved(tmp_path, made(kind, **config)), dropout=False)
    ids, flags = batch()
    ours = predict_tokens(model, ids, flags).logprobs
    expected = plain_logprobs(model.eval(), ids, flags)
    torch.testing.assert_close(ours, expected, atol=TOLERANCE, rtol=0)
    (ours.sum()).backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    plain_logprobs(model, ids, flags).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_encoder_is_refused_with_the_family_and_the_number(kind: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"model_type {kind}.*not a causal.*is_decoder.*nats; must be at most 0.0001"
    ) as error:
        load_causal_lm(saved(tmp_path, made(kind)))
    assert "\n" not in str(error.value)


def test_an_encoder_without_any_decoder_is_refused_too(tmp_path: Path) -> None:
    model = made("xlm", emb_dim=32, n_layers=2, n_heads=4, n_words=60)
    with pytest.raises(UserError, match=r"model_type xlm.*nats"):
        load_causal_lm(saved(tmp_path, model))


def test_llama4_is_found_behind_another_name(tmp_path: Path) -> None:
    model = made("llama4_text", num_local_experts=2, num_key_value_heads=2, head_dim=8, intermediate_size_mlp=64)
    loaded = load_causal_lm(saved(tmp_path, model))
    ids, flags = batch()
    with torch.no_grad():
        loaded.eval()
        ours, expected = predict_tokens(loaded, ids, flags).logprobs, plain_logprobs(loaded, ids, flags)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "gemma2"])
def test_rounding_is_no_fault_and_a_missing_soft_cap_is_one(
    family: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family).to(getattr(torch, dtype))
    check_causal_lm(model, plain_forward(model))
    plain = plain_forward(model)
    head = output_head(model)
    monkeypatch.setattr("rlhf_lightning.models.self_check.output_head", lambda _: lambda hidden: 1.5 * head(hidden))
    with pytest.raises(UserError, match="nats; must be at most"):
        check_causal_lm(model, plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "wrong",
    [lambda logits: 10 * torch.tanh(logits / 10), lambda logits: 1.05 * logits],
    ids=["a soft cap too many", "a multiplier"],
)
def test_a_slight_fault_of_the_output_layer_is_seen_in_16_bits_too(
    wrong: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although the layers below round by more than the fault changes."""
    model = tiny_model("llama").to(getattr(torch, dtype))
    plain, head = plain_forward(model), output_head(model)
    monkeypatch.setattr("rlhf_lightning.models.self_check.output_head", lambda _: lambda hidden: wrong(head(hidden)))
    with pytest.raises(UserError, match="nats; must be at most"):
        check_causal_lm(model, plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_hide_no_fault_of_a_family(dtype: Any, tmp_path: Path) -> None:
    for kind, config in (("falcon_h1", FALCON_H1), ("mamba", {"state_size": 8, "time_step_rank": 4})):
        model = load_causal_lm(saved(tmp_path / kind, made(kind, **config)), dtype=dtype)
        assert forward_module.uses_own_head(model)
    with pytest.raises(UserError, match="later tokens change"):
        load_causal_lm(saved(tmp_path / "bert", made("bert")), dtype=dtype)


def test_noise_is_measured_where_it_is_more_than_a_few_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mixture of experts, or a deep network, in 16 bits: its noise is the effect of its input's rounding, no more."""
    model = tiny_model("llama").to(torch.bfloat16)
    plain = plain_forward(model)
    with torch.no_grad():
        noise = noise_of(model, plain.compared)
    monkeypatch.setattr("rlhf_lightning.models.self_check.OF_HEAD", float("inf"))
    for times, refused in ((0.5, False), (2.0, True)):
        moved = [logits.float() + times * noise * torch.randn(logits.shape).sign() for logits in plain.outputs]
        with pytest.raises(UserError) if refused else contextlib.nullcontext():
            check_causal_lm(model, plain._replace(outputs=moved))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_check_leaves_everything_as_it_was(family: str) -> None:
    model = tiny_model(family, dropout=0.5).train()
    model.lm_head.eval()
    seen = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    state = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    attention = model.config._attn_implementation
    check_causal_lm(model, plain_forward(model))
    assert [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()] == seen
    assert model.training and not model.lm_head.training
    assert model.config._attn_implementation == attention
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.equal(value, state[name]) and value.grad is None and value.dtype == state[name].dtype


def test_a_model_with_an_adapter_is_checked_through_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path, tiny_model("llama"))
    load_causal_lm(folder, adapter=LoRA())
    monkeypatch.setattr(forward_module, "packable", lambda *_: False)
    monkeypatch.setattr(
        forward_module, "hidden_states", lambda model, ids: forward_module.backbone(model)(ids.flip(1))[0]
    )
    with pytest.raises(UserError, match="rows of a batch get different"):
        load_causal_lm(folder, adapter=LoRA())


def test_an_attention_that_the_family_lacks_is_refused_by_its_key(tmp_path: Path) -> None:
    folder = saved(tmp_path, made("mamba", state_size=8, time_step_rank=4))
    assert load_causal_lm(folder).config.model_type == "mamba"  # nothing requested: the family's default
    with pytest.raises(UserError, match=r"model\.attn_implementation: found no_such"):
        load_causal_lm(saved(tmp_path / "llama", tiny_model("llama")), attn_implementation="no_such")


def test_distance_is_of_distributions_and_not_of_logits() -> None:
    logits = torch.randn(3, 5)
    assert distance(logits + 7, logits, 0.0).small
    assert not distance(logits * 1.01, logits, 0.0).small
    assert not distance(logits * torch.nan, logits, 0.0).small


def test_the_value_head_is_as_wide_as_the_hidden_states(tmp_path: Path) -> None:
    """OPT-350m projects its states to the width of its embeddings."""
    model = made("opt", word_embed_proj_dim=16, ffn_dim=64, init_std=0.2)
    loaded = load_causal_lm(saved(tmp_path, model), dropout=False)
    ids = torch.randint(3, 29, (2, 6))
    rows = (ids[:, :3], torch.ones_like(ids[:, :3]), ids[:, 3:], torch.ones(2, 3))
    for critic in (None, forward_module.backbone(load_causal_lm(str(tmp_path)))):
        assert ActorCritic(loaded, critic)(*rows).values.shape == (2, 3)
