"""The hash of weights that should never change, computed once."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from rlhf_lightning.compat.torch_names import writes
from rlhf_lightning.models.loading import fingerprint

SAMPLED = 64  # numbers sampled from each tensor


class RememberedHash:
    """`fingerprint` of a network, recomputed only if something has changed its weights.

    The hash of 8 billion weights takes 12 seconds, too long for every checkpoint. A change is detected by torch's count
    of writes to each tensor and, since some writes are not counted (`tensor.data`), by a few sampled numbers of each.
    """

    def __init__(self) -> None:
        self._marks, self._hash = "", ""

    def of(self, network: nn.Module) -> str:
        """Return the hash. With sharded weights, every process must call it."""
        marks = _marks(network)
        if _of_any_process(network, marks != self._marks):
            self._marks, self._hash = marks, fingerprint(network)
        return self._hash


def _marks(network: nn.Module) -> str:
    """Return what distinguishes this process's weights from changed ones, read from their device at once."""
    named = sorted(network.named_parameters())
    samples = [_sample(parameter) for _, parameter in named]
    digest = hashlib.sha256(repr([(name, writes(parameter)) for name, parameter in named]).encode())
    for sample in torch.cat(samples).cpu().split([len(sample) for sample in samples]) if samples else ():
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _sample(parameter: Tensor) -> Tensor:
    own = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    flat = own.detach().flatten()
    return flat[:: max(1, len(flat) // SAMPLED)].double()


def frozen_mark(network: nn.Module) -> str | None:
    """Return a hash of a few numbers of each frozen weight, which tells one base of an adapter from another.

    None for sharded weights: a process has a part that depends on the number of processes.
    """
    frozen = [
        (name, p) for name, p in sorted(network.named_parameters()) if not p.requires_grad and "lora_" not in name
    ]
    if not frozen or any(isinstance(parameter, DTensor) for _, parameter in frozen):
        return None
    digest = hashlib.sha256(repr([(name, tuple(parameter.shape)) for name, parameter in frozen]).encode())
    digest.update(torch.cat([_sample(parameter) for _, parameter in frozen]).cpu().numpy().tobytes())
    return digest.hexdigest()


def _of_any_process(network: nn.Module, changed: bool) -> bool:
    """Return whether any process finds a change: gathering sharded weights involves all of them."""
    if not any(isinstance(parameter, DTensor) for parameter in network.parameters()):
        return changed
    found = [changed] * distributed.get_world_size()
    distributed.all_gather_object(found, changed)
    return any(found)
