"""Sampling: the native engine next to transformers' generate, and the probabilities that it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from gpu_checks.findings import Finding, at_most, holds
from gpu_checks.runs import wait
from gpu_checks.setting import Setting
from rlhf_lightning.data import left_pad
from rlhf_lightning.models import load_causal_lm, response_logprobs
from rlhf_lightning.rollout import NativeEngine, SamplingSettings

PAD, NO_EOS = 0, [-1]  # a token that no network samples: every response has its full length
LARGEST_GAP = 1e-4  # in float32: what docs/invariants.md requires between a policy and itself
PROMPTS_PER_SLOT = 2


def check(setting: Setting) -> Iterator[Finding]:
    """Yield the small network's results in float32, and the large one's speed."""
    small = load_causal_lm(setting.llama("small")).to(setting.device)
    prompts = random_prompts(setting.sizes.small.vocabulary, 12, 8, 24)
    settings = SamplingSettings(16)
    engine = NativeEngine(PAD, NO_EOS, batch_size=4)
    engine.sync(small)
    generation = engine.generate(prompts, settings, torch.Generator(setting.device).manual_seed(0))
    ids, mask = (x.to(setting.device) for x in left_pad(prompts, PAD))
    with torch.no_grad():
        again = response_logprobs(small, ids, mask, generation.tokens, generation.mask)
    gap = float((again - generation.logprobs).abs().max())
    yield at_most("sampled and recomputed log-probabilities, float32", gap, LARGEST_GAP, "nats")
    second = engine.generate(prompts, settings, torch.Generator(setting.device).manual_seed(0))
    yield holds("the same generator draws the same responses", torch.equal(second.tokens, generation.tokens))
    yield from speed(setting)


def random_prompts(vocabulary: int, count: int, shortest: int, longest: int) -> list[list[int]]:
    """Return token ids without EOS."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def speed(setting: Setting) -> Iterator[Finding]:
    """Yield tokens per second of both, in bfloat16 on a GPU, with equally many rows at a time."""
    sizes = setting.sizes
    dtype: Any = "bfloat16" if setting.device == "cuda" else "float32"
    network = load_causal_lm(setting.llama("large"), dtype=dtype).to(setting.device).eval()
    slots, length = 8 * sizes.rows, sizes.length // 8
    prompts = random_prompts(sizes.large.vocabulary, PROMPTS_PER_SLOT * slots, length // 4, length)
    engine = NativeEngine(PAD, NO_EOS, batch_size=slots)
    engine.sync(network)
    tokens = len(prompts) * length
    ours = best(lambda: engine.generate(prompts, SamplingSettings(length)), setting.device)
    yield Finding(f"native engine, {slots} rows at a time", tokens / ours, "tokens/s")
    theirs = best(lambda: generate(network, prompts, slots, length), setting.device)
    yield Finding("generate of transformers", tokens / theirs, "tokens/s")
    yield Finding("native engine", theirs / ours, "times generate's speed")


def best(work: Callable[[], object], device: str) -> float:
    """Return the shorter time of two runs: the first one warms up."""
    found = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        wait(device)
        found.append(time.perf_counter() - started)
    return min(found)


@torch.inference_mode()
def generate(network: Any, prompts: list[list[int]], slots: int, length: int) -> list[Tensor]:
    """Return responses of full length, generated a batch at a time."""
    network.generation_config.eos_token_id = None
    settings = GenerationConfig(max_new_tokens=length, do_sample=True, top_k=0, pad_token_id=PAD)
    drawn = []
    for start in range(0, len(prompts), slots):
        ids, mask = (x.to(network.device) for x in left_pad(prompts[start : start + slots], PAD))
        drawn.append(network.generate(input_ids=ids, attention_mask=mask, generation_config=settings))
    return drawn
