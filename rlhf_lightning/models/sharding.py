"""FSDP2: weights, gradients and optimiser state sharded over the processes, one decoder layer at a time.

Every process must run the same collectives in the same order, so nothing here may depend on a process's own lengths:
the whole network's forward pass is one call (`as_forward`), and a rollout works on gathered weights (`whole_weights`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.precision import Float32Linear, compute_as


def shard(root: nn.Module, mesh: DeviceMesh, gathered: torch.dtype | None = None) -> None:
    """Shard `root` over the processes of `mesh`, with each decoder layer as a unit.

    Args:
        gathered: the dtype in which weights are communicated and computed with, except for heads in float32; None:
            their own. What is stored, trained and reduced over processes keeps its dtype.

    Raises:
        UserError: weights in 4 bits, which cannot be split.
    """
    if any(not parameter.dtype.is_floating_point for parameter in root.parameters()):
        raise UserError("model.quantization: 4-bit weights cannot be sharded; use trainer=ddp, or 16-bit weights")
    # Without casting inputs: masks are floats, and their sums must be exact.
    policy = MixedPrecisionPolicy(gathered, None if gathered is None else torch.float32, cast_forward_inputs=False)
    for module in [*root.modules()]:
        if isinstance(module, Float32Linear):
            fully_shard(module, mesh=mesh)
    for module in [*root.modules()]:
        if isinstance(module, GradientCheckpointingLayer):  # transformers' base class of decoder layers
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    if gathered is not None:
        compute_as(gathered, root)


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a sharded tensor; any other tensor unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_forward(root: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function(root, ...)` that gathers a sharded root's weights before and reduces gradients after the call.

    FSDP does so only around `forward`; a function that calls parts of a network must be registered.
    """
    if not isinstance(root, FSDPModule):
        return partial(function, root)
    name = f"forward_of_{function.__name__}"
    if not hasattr(root, name):
        setattr(root, name, MethodType(function, root))
        register_fsdp_forward_method(root, name)
    run: Callable[..., Any] = getattr(root, name)
    return run


def _nothing(root: nn.Module) -> None:
    """Run the root's first forward pass, which tells FSDP which module is the root."""


@contextlib.contextmanager
def whole_weights(root: nn.Module | None) -> Iterator[None]:
    """Gather all weights of `root` on every process, so that forward passes of its parts communicate nothing.

    For rollouts: processes generate different lengths, and one gather per token would wait for the longest. It takes
    the memory of all weights meanwhile. Does nothing for a root that is not sharded.
    """
    shards = [module for module in root.modules() if isinstance(module, FSDPModule)] if root is not None else []
    if not shards:
        yield
        return
    assert root is not None
    as_forward(root, _nothing)()
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.reshard()
            module.set_reshard_after_forward(module is not root, recurse=False)


def whole_state(network: nn.Module) -> dict[str, Any] | None:
    """Return all weights of a sharded network on the CPU of the first process; None if not sharded. A collective."""
    if not any(hasattr(parameter, "full_tensor") for parameter in network.parameters()):
        return None
    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
