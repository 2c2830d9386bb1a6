"""Our forward passes instead of transformers' own: the same numbers, and what each one gains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from gpu_checks.comparing import TIMES, distance, median_seconds
from gpu_checks.findings import Finding, at_most
from gpu_checks.setting import Setting
from rlhf_lightning.kernels.use import use_kernels
from rlhf_lightning.models import predict_tokens

# Name -> the active kernels.
PARTS: dict[str, tuple[str, ...]] = {
    "transformers' own": (),
    "packed rows": ("packing",),
    "gated blocks": ("gated_blocks",),
    "norms": ("norms",),
    "packed rows, last layer": ("packing", "last_layer"),
    "all": ("packing", "last_layer", "gated_blocks", "norms"),
}


def check(setting: Setting) -> Iterator[Finding]:
    """Check equality on the small network, speed and memory on the wide one."""
    yield from equality(setting)
    yield from speed(setting)


def answers(setting: Setting, vocabulary: int, prompt: int, answer: int) -> tuple[Tensor, Tensor]:
    """Return two answers of different lengths to each prompt: ids [B, L] and flags [B, L] of the answers' tokens."""
    generator = torch.Generator().manual_seed(0)
    count = setting.sizes.rows
    ids = torch.randint(3, vocabulary, (count, prompt + answer), generator=generator).repeat_interleave(2, dim=0)
    ids[1::2, prompt:] = torch.randint(3, vocabulary, (count, answer), generator=generator)
    lengths = prompt + 1 + torch.randint(answer, (2 * count, 1), generator=generator)
    places = torch.arange(prompt + answer)
    flags = ((places >= prompt) & (places < lengths)).long()
    return ids.to(setting.device), flags.to(setting.device)


def network_with(plain: Any, part: str) -> Any:
    """Return a copy of a network with the part's forward passes."""
    network = copy.deepcopy(plain)
    use_kernels(network, PARTS[part] or "none")
    return network


def step(network: Any, ids: Tensor, flags: Tensor) -> Tensor:
    """Return log-probabilities, leaving the gradients of their mean in the network."""
    network.zero_grad()
    logprobs = predict_tokens(network, ids, flags).logprobs
    logprobs.mean().backward()
    return logprobs.detach()


def gradient(network: Any) -> Tensor:
    """Return all gradients in one vector."""
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


def equality(setting: Setting) -> Iterator[Finding]:
    """Check that each part is as close to float64 as transformers' own forward pass."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(setting.llama("small"), dtype=torch.float32)
    plain = loaded.to(setting.device)
    ids, flags = answers(setting, setting.sizes.small.vocabulary, 24, 16)
    own = next(iter(PARTS))
    double = network_with(plain, own).double()
    exact = (step(double, ids, flags), gradient(double))
    for dtype in (torch.float32, torch.bfloat16):
        limits = [0.0, 0.0]
        for part in PARTS:
            network = network_with(plain, part).to(dtype)
            found = (step(network, ids, flags), gradient(network))
            errors = [distance(result, right) for result, right in zip(found, exact, strict=True)]
            if part == own:
                limits = [TIMES * error + torch.finfo(dtype).eps for error in errors]
                continue
            for what, error, limit in zip(("log-probabilities", "gradient"), errors, limits, strict=True):
                yield at_most(f"{part}, {str(dtype)[6:]}: {what}", error, limit, "of float64")


def speed(setting: Setting) -> Iterator[Finding]:
    """Yield the seconds of a forward and backward pass, and on a GPU the memory that it takes."""
    dtype = torch.bfloat16 if setting.device == "cuda" else torch.float32
    loaded: Any = AutoModelForCausalLM.from_pretrained(setting.llama("wide"), dtype=dtype)
    plain, length = loaded.to(setting.device), setting.sizes.length
    ids, flags = answers(setting, setting.sizes.wide.vocabulary, length // 2, length // 2)
    own: tuple[float, int] | None = None
    for part in PARTS:
        network = network_with(plain, part)
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if setting.device == "cuda" else 0
        seconds = median_seconds(
            lambda network=network: step(network, ids, flags),  # type: ignore[misc]
            setting.device,
            setting.sizes.repeats,
        )
        peak = torch.cuda.max_memory_allocated() - before if setting.device == "cuda" else 0
        yield Finding(f"{part}: a pass forward and backward", 1000 * seconds, "ms")
        if own is None:
            own = (seconds, peak)
            continue
        yield Finding(f"{part}: speed", own[0] / seconds, "times transformers'")
        if peak:
            yield Finding(f"{part}: memory", peak / own[1], "of transformers'")
