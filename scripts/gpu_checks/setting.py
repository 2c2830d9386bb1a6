"""Where the checks run and how large they are; the models and rows that they make for themselves."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from comparison.inputs import VOCABULARY, word_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_lightning.models import save_model


@dataclass(frozen=True)
class Llama:
    """The sizes of a random Llama.

    Args:
        layers: number of layers, each with attention and a gated block.
        width: width of the hidden states.
        heads: number of query heads; several of them share each of the `kv_heads`.
        vocabulary: tokens of the output layer.
        inner: width of the gated block; 0: four times `width`.
        spread: standard deviation of the weights; large ones tell tokens and positions apart.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    vocabulary: int = VOCABULARY
    inner: int = 0
    spread: float = 0.02


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run of all checks.

    Args:
        small: compared with float64 on a CPU.
        wide: with layers like those of large models, for the speed of single parts.
        large: the network whose memory, speed and utilisation are measured.
        length: tokens per row for `large`; a response has a quarter.
        rows: rows per batch.
        steps: optimiser steps that are timed.
        repeats: timings of a part, of which the median counts.
    """

    small: Llama
    wide: Llama
    large: Llama
    length: int
    rows: int
    steps: int
    repeats: int


# The large one has the shape of Llama 3.2 1B.
ON_A_GPU = Sizes(
    small=Llama(4, 256, 4, 2, spread=0.1),
    wide=Llama(4, 2048, 32, 8, 32_000, 8192),
    large=Llama(16, 2048, 32, 8, 128_256, 8192),
    length=1024,
    rows=4,
    steps=8,
    repeats=9,
)
REHEARSAL = Sizes(
    small=Llama(2, 64, 4, 2, spread=0.2),
    wide=Llama(2, 128, 4, 2),
    large=Llama(2, 128, 4, 2),
    length=128,
    rows=4,
    steps=3,
    repeats=3,
)


@dataclass(frozen=True)
class Setting:
    """The setting of every check: a device (`cuda` or `cpu`), sizes, and a separate folder to write in."""

    device: str
    sizes: Sizes
    folder: Path

    @property
    def accelerator(self) -> str:
        """Return the trainer's name of the device."""
        return "gpu" if self.device == "cuda" else "cpu"

    def llama(self, name: str) -> Path:
        """Return the folder of the `small`, `wide` or `large` network, created if missing."""
        folder = self.folder.parent / name
        if not (folder / "config.json").exists():
            save_model(random_llama(getattr(self.sizes, name), self.device), word_tokenizer(), folder)
        return folder

    def rows(self, name: str, rows: Iterable[dict[str, Any]]) -> Path:
        """Write a JSONL file."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        return path


def random_llama(size: Llama, device: str) -> Any:
    """Return a network with random weights, drawn on the device: a billion of them take long on a CPU."""
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.width,
        intermediate_size=size.inner or 4 * size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        initializer_range=size.spread,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    with torch.device(device):
        network = LlamaForCausalLM(config).to(torch.float32 if size.width < 2048 else torch.bfloat16)
    return network.cpu()


def words(generator: random.Random, count: int) -> str:
    """Return words of the tokenizer, one token each."""
    return " ".join(f"w{generator.randrange(3, VOCABULARY)}" for _ in range(count))


def demonstrations(count: int, prompt: int, answer: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows for SFT, all with this many words."""
    generator = random.Random(seed)
    return [{"prompt": words(generator, prompt), "completion": words(generator, answer)} for _ in range(count)]


def preferences(count: int, prompt: int, answer: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows for reward models and DPO."""
    generator = random.Random(seed)
    lengths = {"prompt": prompt, "chosen": answer, "rejected": answer}
    return [{name: words(generator, length) for name, length in lengths.items()} for _ in range(count)]


def prompts(count: int, length: int, seed: int = 0) -> list[dict[str, str]]:
    """Return rows for PPO."""
    generator = random.Random(seed)
    return [{"prompt": words(generator, length)} for _ in range(count)]


def length_reward(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return a cheap reward that differs from response to response."""
    return [len(response) / 100 for response in responses]
