"""Adapters made by plain peft, with settings that ours never have: the same results as peft's, or a refusal."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import LoRA, Reference, load_causal_lm, load_reward_model, response_logprobs, save_model
from tests.models.test_forward import rows
from tests.tiny import tiny_model, tiny_tokenizer

LAYERS = ["q_proj", "v_proj"]
MADE_ELSEWHERE: dict[str, dict[str, Any]] = {
    "an output layer of its own": {"modules_to_save": ["lm_head"]},
    "an embedding of its own": {"modules_to_save": ["embed_tokens"]},
    "norms": {"modules_to_save": ["input_layernorm"]},
    "all biases": {"bias": "all"},
    "biases of adapted layers": {"bias": "lora_only"},
    "alpha by layer": {"alpha_pattern": {"q_proj": 64}},
    "rank by layer": {"rank_pattern": {"q_proj": 8}},
    "one layer": {"layers_to_transform": [1]},
    "all but one": {"exclude_modules": ["model.layers.0.self_attn.q_proj"]},
    "rows of the embedding": {"trainable_token_indices": [5, 6]},
    "a parameter": {"target_parameters": ["mlp.up_proj.weight"]},
    "biases of the updates": {"lora_bias": True},
    "the output layer": {"target_modules": [*LAYERS, "lm_head"]},
    "the embedding": {"target_modules": [*LAYERS, "embed_tokens"]},
    "both, tied": {"target_modules": [*LAYERS, "embed_tokens"], "ensure_weight_tying": True},
    "an expression": {"target_modules": r".*layers\.1.*(q_proj|v_proj)"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a base with biases, and with the output layer tied to the embedding."""
    folder = tmp_path_factory.mktemp("base")
    model = tiny_model("qwen2", hidden=32)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make(base: Path, folder: Path, config: Any = None, **settings: Any) -> Any:
    """Make an adapter as plain peft saves it, all of whose parts have been trained; return its model."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"target_modules": LAYERS, "r": 4, "lora_alpha": 32, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(plain, config or LoraConfig(**settings))
    train(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return model.eval()


def train(model: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 29, (2, 9), generator=torch.Generator().manual_seed(0))
    return model.eval()(ids).logits


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare up to float32 rounding, relative to the largest logit: a missing part changes logits by 0.1."""
    torch.testing.assert_close(got, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def lora(settings: dict[str, Any]) -> LoRA:
    return LoRA(rank=4, alpha=32, target_modules=settings.get("target_modules", LAYERS))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MADE_ELSEWHERE)
def test_an_adapter_made_elsewhere_is_merged_to_what_peft_computes_and_exported_so(
    name: str, base: Path, tmp_path: Path
) -> None:
    expected = logits(make(base, tmp_path / "adapter", **MADE_ELSEWHERE[name]))
    assert (expected - logits(load_causal_lm(base))).abs().max() > 0.1
    merged = load_causal_lm(tmp_path / "adapter")
    assert_same(logits(merged), expected)
    assert all(parameter.requires_grad for parameter in merged.parameters())
    save_model(merged, tiny_tokenizer(), tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_same(logits(plain), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MADE_ELSEWHERE)
def test_training_goes_on_from_an_adapter_made_elsewhere_with_all_its_parts(
    name: str, base: Path, tmp_path: Path
) -> None:
    settings = MADE_ELSEWHERE[name]
    theirs = make(base, tmp_path / "adapter", **settings)
    ours = load_causal_lm(tmp_path / "adapter", adapter=lora(settings))
    assert torch.equal(logits(ours), logits(theirs))
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in theirs.named_parameters() if p.requires_grad
    }
    reference = Reference(ours, lambda: load_causal_lm(tmp_path / "adapter", adapter=lora(settings)))
    start = response_logprobs(ours, *rows())
    train(ours)
    with reference.model(like=rows()[0]) as model:
        assert torch.equal(response_logprobs(model, *rows()), start)
    save_model(ours, tiny_tokenizer(), tmp_path / "further")
    merged = load_causal_lm(tmp_path / "further")
    assert_same(logits(merged), logits(ours))


def test_a_new_adapter_on_a_tied_output_layer_is_exported_as_it_was_trained(base: Path, tmp_path: Path) -> None:
    model = load_causal_lm(base, adapter=LoRA(rank=4, target_modules=["q_proj", "lm_head"]))
    train(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_model(model, tiny_tokenizer(), tmp_path)
    assert_same(logits(load_causal_lm(tmp_path)), logits(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer_replication": [[0, 1], [0, 2]]}, r"layer_replication is \[\[0, 1\], \[0, 2\]\]"),
        ({"alora_invocation_tokens": [5, 6]}, r"alora_invocation_tokens is \[5, 6\]"),
        ({"config": IA3Config(target_modules=LAYERS, feedforward_modules=[])}, "holds a .*IA3 adapter"),
        ({"config": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)}, "PROMPT_TUNING adapter"),
    ],
)
def test_what_cannot_be_right_is_refused_by_its_name(
    settings: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "adapter_config.json"
    if "config" in settings:
        make(base, tmp_path, **settings)
    else:
        make(base, tmp_path)
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    for adapter in (None, lora({})):
        with pytest.raises(UserError, match=message):
            load_causal_lm(tmp_path, adapter=adapter)


def test_training_does_not_go_on_from_an_adapter_that_changed_its_base(base: Path, tmp_path: Path) -> None:
    expected = logits(make(base, tmp_path, init_lora_weights="pissa"))
    assert_same(logits(load_causal_lm(tmp_path)), expected)
    with pytest.raises(UserError, match=r'init_lora_weights is "pissa"'):
        load_causal_lm(tmp_path, adapter=lora({}))


def test_an_adapter_of_other_layers_than_asked_for_is_refused_with_the_key_that_fits(
    base: Path, tmp_path: Path
) -> None:
    make(base, tmp_path)
    with pytest.raises(UserError, match=r"set model\.adapter\.target_modules=\[q_proj,v_proj\]"):
        load_causal_lm(tmp_path, adapter=LoRA(rank=4))
    with pytest.raises(UserError, match=r"model\.adapter\.target_modules: found \['nothing'\]"):
        load_causal_lm(base, adapter=LoRA(target_modules=["nothing"]))


@pytest.mark.parametrize("damage", ["a weight is missing", "a weight too many", "another shape"])
def test_an_adapter_whose_weights_do_not_fit_is_refused(damage: str, base: Path, tmp_path: Path) -> None:
    make(base, tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(iter(weights))
    if damage == "a weight is missing":
        del weights[name]
    elif damage == "a weight too many":
        weights[name.replace("layers.0", "layers.7")] = weights[name].clone()
    else:
        weights[name] = torch.zeros(4, 5)
    save_file(weights, tmp_path / "adapter_model.safetensors")
    for adapter in (None, lora({})):
        with pytest.raises(UserError, match=r"model\.path: .*(lacks|no place for|size mismatch)"):
            load_causal_lm(tmp_path, adapter=adapter)


def test_a_reward_models_adapter_is_not_a_language_model(base: Path, tmp_path: Path) -> None:
    save_model(load_reward_model(base, adapter=LoRA(rank=4)), tiny_tokenizer(), tmp_path)
    for adapter in (None, LoRA(rank=4)):
        with pytest.raises(UserError, match="is the adapter of a reward model"):
            load_causal_lm(tmp_path, adapter=adapter)


def test_an_adapter_on_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    make(base, tmp_path / "one")
    make(base, tmp_path / "two")
    file = tmp_path / "two/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "one")}))
    with pytest.raises(UserError, match="is itself an adapter"):
        load_causal_lm(tmp_path / "two")
