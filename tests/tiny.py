"""The smallest real models and tokenizers: random weights, made in memory, without the hub."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import PreTrainedTokenizerFast as Tokenizer_

from rlhf_lightning.models import load_reward_model, save_model

WORDS = list("abcdefghijklmnopqrstuvwxyz")


def tiny_tokenizer(pad_is_eos: bool = False, words: list[str] = WORDS) -> Tokenizer_:
    """Return a word-level tokenizer: <pad> 0, <eos> 1, <unk> 2, then the words."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    pad = "<eos>" if pad_is_eos else "<pad>"
    return Tokenizer_(tokenizer_object=backend, eos_token="<eos>", pad_token=pad, unk_token="<unk>")


FAMILIES = ["llama", "gpt2", "mistral", "qwen2", "qwen3", "gemma", "gemma2"]


def tiny_model(
    family: str = "llama",
    vocab_size: int = len(WORDS) + 3,
    hidden: int = 32,
    layers: int = 2,
    dropout: float = 0.0,
    positions: int = 128,
) -> PreTrainedModel:
    """Return a random model of a family, always the same, with weights that tell tokens and positions apart."""
    size = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
    }
    if family == "gpt2":
        own = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
    else:
        own = {
            "intermediate_size": 2 * hidden,
            "num_key_value_heads": 2,
            "head_dim": hidden // 4,
            "attention_dropout": dropout,
        }
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=vocab_size, initializer_range=0.2, **size, **own, **ids)
        return AutoModelForCausalLM.from_config(config)


def write_reward_model(folder: Path, model: PreTrainedModel | None = None, pad_is_eos: bool = False) -> Path:
    """Write a reward model on a tiny backbone, with its tokenizer."""
    backbone, tokenizer = model or tiny_model(), tiny_tokenizer(pad_is_eos)
    backbone.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_model(load_reward_model(folder), tokenizer, folder)
    return folder
