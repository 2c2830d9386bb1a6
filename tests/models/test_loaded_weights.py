"""A network is what its folder says: a missing weight is an error that names it, never random."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import NF4, LoRA, load_causal_lm, load_reward_model, save_model
from rlhf_lightning.models.reward_model import load_scorer
from rlhf_lightning.rewards import ModelReward
from tests.tiny import tiny_model, tiny_tokenizer, write_reward_model

Weights = dict[str, torch.Tensor]


def write(folder: Path, edit: Callable[[Weights], Weights] = dict, tied: bool = False, **config: Any) -> Path:
    """Write a tiny model whose file has other weights than its config asks for."""
    model = tiny_model()
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in edit(load_file(file)).items()}
    save_file(weights, file, metadata={"format": "pt"})
    settings = folder / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | config))
    return folder


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def renamed(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def plus(name: str, *shape: int) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name: torch.ones(shape)}


WRONG = {
    "a layer is missing": (without("layers.1"), {}, r"lacks 9 weights, such as model\.layers\.1\.input_layernorm"),
    "the output layer is missing": (without("lm_head"), {}, r"lacks lm_head\.weight .* has no output layer"),
    "DataParallel's names": (renamed("module."), {}, r'lacks 2. weights.* begin with "module\."'),
    "torch.compile's names": (renamed("_orig_mod."), {}, r'lacks 2. weights.* begin with "_orig_mod\."'),
    "names of another network": (renamed("other."), {}, r"lacks 2. weights, such as "),
    "one layer more than the config": (dict, {"num_hidden_layers": 1}, r"holds 9 weights, such as model\.layers\.1\."),
    "one layer fewer than the config": (dict, {"num_hidden_layers": 3}, r"lacks 9 weights, such as model\.layers\.2\."),
    "a bias that the network has not": (plus("model.norm.bias", 32), {}, r"holds model\.norm\.bias, which"),
    "another width": (dict, {"intermediate_size": 65}, r"_proj\.weight is \[\d+, \d+\], .* needs \[.*65"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_do_not_fit_the_config_are_refused_by_name(name: str, tmp_path: Path) -> None:
    edit, config, message = WRONG[name]
    write(tmp_path, edit, **config)
    loads: list[Callable[[], Any]] = [
        lambda: load_causal_lm(tmp_path),
        lambda: load_causal_lm(tmp_path, adapter=LoRA(rank=2), quantization=NF4()),
    ]
    if name != "the output layer is missing":  # a reward model has another one
        loads.append(lambda: load_reward_model(tmp_path))
    for load in loads:
        with pytest.raises(UserError, match=f"^model.path: .*({message})") as error:
            load()
        assert "\n" not in str(error.value)


def test_tied_weights_buffers_and_heads_of_other_tasks_are_no_reason_to_refuse(tmp_path: Path) -> None:
    expected = load_causal_lm(write(tmp_path / "tied", tied=True)).state_dict()
    assert torch.equal(expected["lm_head.weight"], expected["model.embed_tokens.weight"])
    for name, shape in (("v_head.weight", (1, 32)), ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,))):
        load_causal_lm(write(tmp_path / name, plus(name, *shape)))
    with pytest.raises(UserError, match=r"lacks 2 weights, such as lm_head\.weight"):
        load_causal_lm(write(tmp_path / "none", without("embed"), tied=True))


def test_an_output_layer_of_its_own_in_a_tied_folder_is_kept_and_exported_as_such(tmp_path: Path) -> None:
    model = load_causal_lm(write(tmp_path / "base", plus("lm_head.weight", 29, 32), tied=True))
    assert model.config.tie_word_embeddings is False
    save_model(model, tiny_tokenizer(), tmp_path / "model")
    assert float(AutoModelForCausalLM.from_pretrained(tmp_path / "model").lm_head.weight.min()) == 1.0


def test_a_language_model_from_a_reward_models_folder_is_refused_unless_its_output_layer_is_tied(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match=r"lacks lm_head\.weight .* a reward model's folder is not a language model"):
        load_causal_lm(write_reward_model(tmp_path / "untied"))
    tied = tiny_model()
    tied.config.tie_word_embeddings = True
    tied.tie_weights()
    model = load_causal_lm(write_reward_model(tmp_path / "tied", tied))
    assert torch.equal(model.lm_head.weight, tied.model.embed_tokens.weight)


@pytest.mark.parametrize("damage", ["cut", "a shard is missing", "no weights"])
def test_a_file_that_cannot_be_read_is_one_line(damage: str, tmp_path: Path) -> None:
    write(tmp_path)
    file = tmp_path / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "no weights":
        file.unlink()
    else:
        file.unlink()
        tiny_model().save_pretrained(tmp_path, max_shard_size="20KB")
        next(tmp_path.glob("model-00002-*")).unlink()
    with pytest.raises(UserError, match=r"^model\.path: .* cannot be loaded: ") as error:
        load_causal_lm(tmp_path)
    assert "\n" not in str(error.value)


def test_only_a_reward_model_that_is_to_be_trained_may_have_a_new_head(tmp_path: Path) -> None:
    write(tmp_path / "lm")
    load_reward_model(tmp_path / "lm")
    with pytest.raises(UserError, match=r"lm has no score head, so it is not a reward model; .*experiment=reward"):
        _ = ModelReward(tmp_path / "lm").model
    save_model(load_causal_lm(tmp_path / "lm", adapter=LoRA(rank=2)), tiny_tokenizer(), tmp_path / "sft")
    with pytest.raises(UserError, match="sft has no score head"):
        _ = ModelReward(tmp_path / "sft").model
    save_model(load_reward_model(tmp_path / "lm", adapter=LoRA(rank=2)), tiny_tokenizer(), tmp_path / "reward")
    assert ModelReward(tmp_path / "reward")(["a"], ["b"])


def test_a_classifier_of_several_labels_is_not_a_reward_model(tmp_path: Path) -> None:
    write(tmp_path, plus("score.weight", 2, 32))
    for load in (load_reward_model, load_scorer):
        with pytest.raises(UserError, match=r"has 2 labels \(score\.weight is \[2, 32\]\); .* exactly one"):
            load(tmp_path)


def test_a_tokenizer_with_more_tokens_than_the_reward_model_is_refused(tmp_path: Path) -> None:
    write_reward_model(tmp_path)
    tiny_tokenizer(words=[f"w{i}" for i in range(40)]).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"tokenizer of .* has 43 tokens, its network embeddings of 29"):
        _ = ModelReward(tmp_path).model


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value: float, tmp_path: Path) -> None:
    def spoilt(weights: Weights) -> Weights:
        name = next(name for name in weights if "q_proj" in name)
        weights[name][0, 0] = value
        return weights

    model = write(tmp_path / "model", spoilt)
    with pytest.raises(
        UserError, match=r"^model\.path: .*/model has weights that are not finite \(.*q_proj.weight, in f"
    ):
        load_causal_lm(model)


def test_the_weights_of_an_adapter_and_of_a_score_head_are_checked_too(tmp_path: Path) -> None:
    base = write(tmp_path / "base")
    save_model(load_causal_lm(base, adapter=LoRA(rank=2)), tiny_tokenizer(), tmp_path / "adapter")
    scorer = write_reward_model(tmp_path / "scorer", tiny_model())
    for folder, file, part in ((tmp_path / "adapter", "adapter_model", "lora_B"), (scorer, "model", "score.weight")):
        weights = load_file(folder / f"{file}.safetensors")
        name = next(name for name in weights if part in name)
        save_file({**weights, name: weights[name] * float("nan")}, folder / f"{file}.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"^model\.path: .*adapter has weights that are not finite \(.*lora_B"):
        load_causal_lm(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"^reward\.model: .*scorer has weights that are not finite \(score\.weight"):
        ModelReward(scorer)(["a"], ["b"])


def test_weights_whose_products_are_not_finite_are_named(tmp_path: Path) -> None:
    ends = ("model.norm.weight", "lm_head.weight")
    model = write(tmp_path / "model", lambda weights: {**weights, **{name: weights[name] * 1e37 for name in ends}})
    with pytest.raises(UserError, match=r"^model\.path: .*not finite .*its largest weight is 1e\+37 \(model\.norm"):
        load_causal_lm(model)
