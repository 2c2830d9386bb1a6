"""The random Llamas of the PPO rows, their reward models and prompts, and the rows picked from the user's files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlhf_lightning.models import LoRA, load_reward_model, load_tokenizer, save_model

VOCABULARY = 2048
PROMPTS, SHORTEST, LONGEST = 32, 16, 64


def random_llama(folder: Path, layers: int, width: int) -> Path:
    """Make a Llama with random weights and a word-level tokenizer, as a Hugging Face folder."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    save_model(LlamaForCausalLM(config), tokenizer, folder)
    return folder


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of <pad>, <eos>, <unk>, and the words w3, w4, ..."""
    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(3, VOCABULARY))]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def reward_model(folder: Path, base: str | Path, lora: LoRA | None = None) -> Path:
    """Make a reward model on the base, with a random score head: a whole network, or an adapter."""
    save_model(load_reward_model(base, adapter=lora), load_tokenizer(base), folder)
    return folder


def random_prompts(path: Path) -> Path:
    """Write prompts of 16 to 64 words."""
    generator = random.Random(0)
    rows = []
    for _ in range(PROMPTS):
        length = generator.randint(SHORTEST, LONGEST)
        rows.append({"prompt": " ".join(f"w{generator.randrange(3, VOCABULARY)}" for _ in range(length))})
    write(path, rows)
    return path


def picked_rows(source: str | Path, count: int) -> list[dict[str, Any]]:
    """Return rows of a JSONL file, picked at random but always the same ones."""
    lines = [line for line in Path(source).read_text(encoding="utf-8").split("\n") if line]
    return [json.loads(line) for line in random.Random(0).sample(lines, count)]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def in_our_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows in our loader's order in its first epoch with seed 0, so that the peer's batches are the same."""
    order = np.random.default_rng([0, 0]).permutation(len(rows))
    return [rows[i] for i in order]
