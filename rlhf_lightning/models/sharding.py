"""FSDP2: weights, gradients and optimiser state spread over the processes, one decoder layer at a time.

Every process must run the same collectives in the same order, so nothing here may depend on a process's own lengths:
the whole network's forward is one call (`as_forward`), and a rollout works on whole weights (`whole_weights`).
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
    """Spread `root` over the processes of `mesh`, the layers of its decoders one by one.

    Args:
        gathered: the type in which weights are sent and computed with, heads in float32 excepted; None: their own.
            What is kept, trained and added up over processes stays as it is.

    Raises:
        UserError: weights in 4 bits, which cannot be split.
    """
    if any(not parameter.dtype.is_floating_point for parameter in root.parameters()):
        raise UserError("model.quantization: 4-bit weights cannot be sharded; use trainer=ddp, or 16-bit weights")
    # Without casting inputs: masks are floats, and their sums have to be exact.
    policy = MixedPrecisionPolicy(gathered, None if gathered is None else torch.float32, cast_forward_inputs=False)
    for module in [*root.modules()]:
        if isinstance(module, Float32Linear):
            fully_shard(module, mesh=mesh)
    for module in [*root.modules()]:
        if isinstance(module, GradientCheckpointingLayer):  # transformers' class of decoder layers
            fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)
    if gathered is not None:
        compute_as(gathered, root)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a sharded tensor that this process has; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_forward(root: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(root, ...)`, which for a sharded root gathers the weights before and spreads gradients after.

    FSDP does so around `forward` alone; what calls parts of a network needs to be registered.
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
    """The first forward of the root tells FSDP which module is the root."""


@contextlib.contextmanager
def whole_weights(root: nn.Module | None) -> Iterator[None]:
    """Every process holds all weights of `root`, and forward passes of its parts communicate nothing.

    For rollouts: processes generate different lengths, and a gather a token would wait for the longest. It costs the
    memory of the whole weights meanwhile. Nothing to do for a root that is not sharded.
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
    """All weights of a sharded network, on the CPU of the first process; None if it is not sharded. A collective."""
    if not any(hasattr(parameter, "full_tensor") for parameter in network.parameters()):
        return None
    return get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
