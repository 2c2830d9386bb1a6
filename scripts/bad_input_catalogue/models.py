"""Model, tokenizer and adapter folders."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_catalogue.case import DPO, EVALUATE, PPO, REWARD, SFT, Case, becomes_folder, changed, writes
from bad_input_catalogue.fixtures import edit_json, edit_weights, removes, truncates

WEIGHTS = "model/model.safetensors"


def _model(
    name: str, prepare: Callable[[Path], object], names: str = r"model\.path|model\b", fast: bool = False
) -> Case:
    return Case(f"model: {name}", "train", SFT, names, prepare, fast=fast)


def _without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def _renamed(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {prefix + name: value for name, value in weights.items()}


def _cut_embeddings(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:-5].contiguous() if "embed_tokens" in name else value for name, value in weights.items()}


def _nan(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value * float("nan") for name, value in weights.items()}


def _spoilt(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda weights: {name: value * float("nan") if part in name else value for name, value in weights.items()}


def _t5(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shutil.rmtree(folder / "model")
    config = T5Config(vocab_size=99, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder / "model")
    _copy_tokenizer(folder)


def _copy_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "scorer" / name, folder / "model" / name)


def _bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    shutil.rmtree(folder / "model")
    BertModel(
        BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ).save_pretrained(folder / "model")
    _copy_tokenizer(folder)


def _more_tokens(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens([f"new{i}" for i in range(50)])
    tokenizer.save_pretrained(folder / "model")
    writes("rows.jsonl", '{"prompt": "new1 new49", "completion": " new49"}\n')(folder)


def _no_end(folder: Path) -> None:
    file = folder / "model/tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("eos_token", None)
    file.write_text(json.dumps(settings))


def _two_labels(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(folder / "model", num_labels=2).save_pretrained(
        folder / "scorer"
    )


ADAPTER = changed(SFT, "model.path=adapter")
LORA = [*SFT, "model/adapter=lora"]
BY_MODEL = changed(PPO, "reward.function=null", "reward.model=scorer")
MODELS = [
    _model("no config", removes("model/config.json"), fast=True),
    _model("broken config", writes("model/config.json", "{nope")),
    _model("config is a list", writes("model/config.json", "[]")),
    _model(
        "unknown architecture",
        edit_json("model/config.json", model_type="telepath", architectures=["Telepath"]),
        fast=True,
    ),
    _model(
        "packed in an unknown way",
        edit_json("model/config.json", quantization_config={"quant_method": "of tomorrow"}),
        r"model\.path: .*model is quantised by 'of tomorrow'",
    ),
    _model("no weights", removes(WEIGHTS)),
    _model("weights cut off", truncates(WEIGHTS)),
    _model("weights are text", writes(WEIGHTS, "hello")),
    _model("weights are empty", writes(WEIGHTS, "")),
    _model("weights are a folder", becomes_folder(WEIGHTS)),
    _model("a layer is missing", edit_weights(WEIGHTS, _without("layers.0.mlp")), r"mlp"),
    _model("no output layer", edit_json("model/config.json", tie_word_embeddings=False), r"lm_head"),
    _model("names of DDP", edit_weights(WEIGHTS, _renamed("module.")), r"module\."),
    _model("names of torch.compile", edit_weights(WEIGHTS, _renamed("_orig_mod.")), r"_orig_mod\."),
    _model("misshapen weights", edit_weights(WEIGHTS, _cut_embeddings), r"embed_tokens|shape|size", fast=True),
    _model("weights of NaN", edit_weights(WEIGHTS, _nan), r"finite|NaN|nan|loss"),
    _model("hidden size of the config changed", edit_json("model/config.json", hidden_size=32)),
    _model(
        "heads that do not divide",
        edit_json("model/config.json", num_attention_heads=3, num_key_value_heads=3, head_dim=None),
    ),
    _model("no tokenizer", removes("model/tokenizer.json", "model/tokenizer_config.json")),
    _model("broken tokenizer", writes("model/tokenizer.json", "{nope"), fast=True),
    _model("broken tokenizer config", writes("model/tokenizer_config.json", "{nope")),
    _model("tokenizer without an end", _no_end, r"EOS|end"),
    _model("vocabulary beyond the embeddings", _more_tokens, r"embedding|vocabulary|tokens"),
    _model("an encoder and decoder", _t5, r"t5|T5|model"),
    _model("an encoder", _bert, r"[Bb]ert|lm_head|cls|model"),
    _model("broken generation config", writes("model/generation_config.json", "{nope"), r"generation_config|model"),
    Case("model: missing", "train", changed(SFT, "model.path=nowhere/at/all"), r"model\.path: nowhere/at/all"),
    Case(
        "model: an empty folder",
        "train",
        changed(SFT, "model.path=empty"),
        r"model\.path",
        lambda folder: os.mkdir(folder / "empty"),
    ),
    Case("model: a file", "train", changed(SFT, "model.path=rows.jsonl"), r"model\.path.*rows\.jsonl"),
    Case(
        "model: a hub name without a hub",
        "train",
        changed(SFT, "model.path=nobody/nothing"),
        r"model\.path.*nobody/nothing|nobody/nothing",
    ),
    Case(
        "model: a reward model as policy",
        "train",
        changed(SFT, "model.path=scorer"),
        r"reward model|score|lm_head",
        fast=True,
    ),
    Case(
        "model: a reward model as policy of DPO",
        "train",
        changed(DPO, "model.path=scorer"),
        r"reward model|score|lm_head",
    ),
    Case(
        "model: remote code without a commit",
        "train",
        [*SFT, "model.trust_remote_code=true"],
        r"model\.(trust_remote_code|revision)",
    ),
    Case("model: 4 bits without an adapter", "train", [*SFT, "model/quantization=nf4"], r"model\.quantization"),
    Case(
        "adapter: its base is gone",
        "train",
        ADAPTER,
        r"model\.path|base",
        lambda folder: shutil.rmtree(folder / "model"),
        fast=True,
    ),
    Case(
        "adapter: its base is another model",
        "train",
        ADAPTER,
        r"model\.path|adapter|base|size",
        edit_json("model/config.json", hidden_size=32),
    ),
    Case("adapter: no weights", "train", ADAPTER, r"adapter", removes("adapter/adapter_model.safetensors")),
    Case("adapter: weights cut off", "train", ADAPTER, r"adapter", truncates("adapter/adapter_model.safetensors")),
    Case("adapter: broken config", "train", ADAPTER, r"adapter", writes("adapter/adapter_config.json", "{nope")),
    Case(
        "adapter: of another kind",
        "train",
        ADAPTER,
        r"adapter|LORA|LoRA",
        edit_json("adapter/adapter_config.json", peft_type="TELEPATHY"),
    ),
    Case(
        "adapter: names no base",
        "train",
        ADAPTER,
        r"base",
        edit_json("adapter/adapter_config.json", base_model_name_or_path=None),
    ),
    Case("adapter: of another rank", "train", [*ADAPTER, "model/adapter=lora", "model.adapter.rank=4"], r"rank"),
    Case(
        "lora: no such layer",
        "train",
        [*LORA, "model.adapter.target_modules=[nope]"],
        r"target_modules|nope",
        fast=True,
    ),
    Case("lora: a broken pattern", "train", [*LORA, "model.adapter.target_modules='(unclosed'"], r"target_modules"),
    Case("lora: rank 0", "train", [*LORA, "model.adapter.rank=0"], r"model\.adapter\.rank"),
    Case(
        "lora: an initialisation that changes the base",
        "train",
        [*LORA, "model.adapter.init=pissa"],
        r"model\.adapter\.init",
    ),
    Case(
        "reward model: no score head",
        "train",
        changed(BY_MODEL, "reward.model=model"),
        r"reward\.model|score",
        fast=True,
    ),
    Case("reward model: two labels", "train", BY_MODEL, r"reward\.model|scorer|label", _two_labels),
    Case(
        "reward model: head missing",
        "train",
        BY_MODEL,
        r"score",
        edit_weights("scorer/model.safetensors", _without("score")),
    ),
    Case(
        "reward model: weights cut off",
        "train",
        BY_MODEL,
        r"reward\.model|scorer",
        truncates("scorer/model.safetensors"),
    ),
    Case(
        "reward model: no tokenizer",
        "train",
        BY_MODEL,
        r"reward\.model|scorer",
        removes("scorer/tokenizer.json", "scorer/tokenizer_config.json"),
    ),
    Case("reward model: missing", "train", changed(BY_MODEL, "reward.model=nowhere/x"), r"reward\.model: .*nowhere/x"),
    Case("reward model: to train from broken weights", "train", REWARD, r"model", truncates(WEIGHTS)),
    Case("chat: weights cut off", "chat", ["model=model"], r"model", truncates(WEIGHTS)),
    Case(
        "chat: no tokenizer",
        "chat",
        ["model=model"],
        r"model",
        removes("model/tokenizer.json", "model/tokenizer_config.json"),
    ),
    Case("evaluate: weights cut off", "evaluate", EVALUATE, r"policies\.a|model", truncates(WEIGHTS)),
    Case("evaluate: a missing layer", "evaluate", EVALUATE, r"mlp", edit_weights(WEIGHTS, _without("layers.0.mlp"))),
    Case(
        "evaluate: broken proxy",
        "evaluate",
        [*EVALUATE, "proxy.model=scorer"],
        r"proxy|scorer",
        truncates("scorer/model.safetensors"),
    ),
    Case(
        "plan: broken config",
        "plan",
        ["experiment=sft", "model.path=model"],
        r"model",
        writes("model/config.json", "{nope"),
    ),
    Case(
        "plan: unknown architecture",
        "plan",
        ["experiment=sft", "model.path=model"],
        r"model",
        edit_json("model/config.json", model_type="telepath"),
    ),
    Case("weights: NaN", "train", SFT, r"model\.path.*not finite \(", edit_weights(WEIGHTS, _spoilt("q_proj"))),
    Case(
        "weights: NaN in a reward model",
        "train",
        changed(PPO, "reward.function=null", "reward.model=scorer"),
        r"reward\.model.*not finite \(score\.weight",
        edit_weights("scorer/model.safetensors", _spoilt("score")),
    ),
    *(
        Case(
            f"adapter: the names {names}",
            "train",
            [*SFT, "model/adapter=lora", f"model.adapter.target_modules={names}"],
            r"model\.adapter\.target_modules",
        )
        for names in ("[]", "[q_proj,zz_proj]", "[input_layernorm]", "[self_attn]", "'.*'")
    ),
    Case(
        "adapter: a rank beyond memory",
        "train",
        [*SFT, "model/adapter=lora", "model.adapter.rank=1000000000000"],
        r"model\.adapter\.rank",
    ),
    Case("temperature: too small", "train", changed(PPO, "rollout.temperature=1e-300"), r"rollout\.temperature"),
    Case("chat: a temperature too small", "chat", ["model=model", "temperature=1e-300"], r"temperature: .*1e-05"),
]
