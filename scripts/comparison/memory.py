"""Resident memory of this process, and the bytes of networks."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# Freed blocks of this size and above return to the system immediately, so that resident means alive (glibc).
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def resident(name: str) -> int:
    """Return a figure of this process in bytes: VmRSS is resident memory, VmHWM its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def restart_peak() -> None:
    """Set VmHWM to what is resident now, after freeing what the previous repetition left in reference cycles."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def unmap(parameters: Iterable[nn.Parameter]) -> None:
    """Copy weights to their own memory: a memory-mapped weight keeps its whole file resident."""
    for parameter in parameters:
        if parameter.is_floating_point():
            parameter.data = parameter.data.clone()


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of the storages behind tensors, each storage once; 4-bit weights include their scales."""
    sizes = {}
    for tensor in _with_scales(tensors):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _with_scales(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    for tensor in tensors:
        yield tensor
        state: Any = getattr(tensor, "quant_state", None)  # of bitsandbytes, with a second one for the scales
        while state is not None:
            yield from (value for value in vars(state).values() if isinstance(value, torch.Tensor))
            state = state.state2


def base_bytes(policy: nn.Module) -> int:
    """Return the bytes of a network without its adapters: one model."""
    return storage_bytes(p for name, p in policy.named_parameters() if "lora_" not in name)
