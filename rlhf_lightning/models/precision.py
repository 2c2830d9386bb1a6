"""The dtype of every part of a run, whatever the trainer's precision.

A half precision such as `bf16-true` casts everything that a module holds, and autocast everything that matrix products
read. Only the weights of networks should change. Buffers (the frequencies of rotary positions), adapters and the heads
with one output (values, scores) stay in float32, and the heads compute in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.compat.torch_names import GuardedCasts
from rlhf_lightning.compat.transformers_names import kept_in_float32
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional._arguments import at_least_float32

# The dtype of weights under each of Lightning's precisions; None: they stay as they were loaded.
WEIGHTS: dict[str, torch.dtype | None] = {
    "32-true": None,
    "bf16-mixed": None,
    "16-mixed": None,
    "bf16-true": torch.bfloat16,
    "64-true": torch.float64,
}


def check_precision(precision: str) -> None:
    """Raise UserError for a Lightning precision that these modules do not train in."""
    if precision in WEIGHTS:
        return
    reason = {
        "16-true": "nothing scales gradients there, and those below 6e-8 are lost",
        "transformer-engine": "it replaces linear layers, including those of heads and adapters",
        "transformer-engine-float16": "it replaces linear layers, including those of heads and adapters",
    }.get(precision, "for 4-bit weights choose model/quantization=nf4")
    raise UserError(f'trainer.precision: found "{precision}"; must be {" | ".join(WEIGHTS)}; {reason}')


def check_weights(network: nn.Module, precision: str) -> None:
    """Raise UserError for float16 weights that would be trained, or whose gradients are not scaled."""
    half = {parameter.requires_grad for parameter in network.parameters() if parameter.dtype == torch.float16}
    if True in half:
        raise UserError(
            "model.dtype: float16 weights cannot be trained (updates and gradients fall below what the type holds); "
            "choose model.dtype=float32 with trainer.precision=16-mixed or bf16-mixed, or an adapter on frozen weights"
        )
    if half and precision != "16-mixed":
        raise UserError(
            f"model.dtype: float16 weights need trainer.precision=16-mixed, which scales gradients; found {precision}; "
            "choose model.dtype=bfloat16 or float32"
        )


def is_adapter(name: str) -> bool:
    """Return whether a parameter of this name belongs to an adapter."""
    return any(part.startswith("lora_") or part == "modules_to_save" for part in name.split("."))


def weights_to_cast(root: nn.Module) -> list[nn.Parameter]:
    """Return the weights of networks without adapters, heads, 4-bit layers and what transformers keeps in float32."""
    kept: set[int] = set()
    for module in root.modules():
        head = isinstance(module, Float32Linear) and not module.follows_casts
        if head or _in_four_bits(module):
            kept |= {id(parameter) for parameter in module.parameters()}
        if parts := kept_in_float32(module):
            kept |= {id(p) for name, p in module.named_parameters() if any(part in name for part in parts)}
    return [p for name, p in root.named_parameters() if id(p) not in kept and not is_adapter(name)]


def _in_four_bits(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and not weight.is_floating_point()


def cast_weights(network: nn.Module, dtype: torch.dtype) -> None:
    """Give the weights of a network this dtype; 4-bit ones stay."""
    for parameter in weights_to_cast(network):
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def compute_as(dtype: torch.dtype, root: nn.Module) -> None:
    """Record on modules that they compute with another dtype than their weights have, as sharded ones may."""
    for module in root.modules():
        if not isinstance(module, Float32Linear):
            module.computes_as = dtype  # type: ignore[assignment]  # a parameter would not keep it: FSDP makes new ones


def follow_casts(root: nn.Module) -> None:
    """Let casts reach all parameters of a module, including heads and adapters, as DeepSpeed expects."""
    for module in root.modules():
        if isinstance(module, KeepsTypes | Float32Linear):
            module.follows_casts = True


def match_types(network: nn.Module, like: nn.Module) -> None:
    """Give a network's weights the dtypes with which another network computes the weights of the same names."""
    types = {
        f"{prefix}.{name}".lstrip("."): getattr(module, "computes_as", parameter.dtype)
        for prefix, module in like.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
    }
    for name, parameter in network.named_parameters():
        if parameter.is_floating_point() and types.get(name, parameter.dtype) != parameter.dtype:
            parameter.data = parameter.data.to(types[name])


class KeepsTypes(GuardedCasts):
    """A module in which a cast changes only the weights of networks; heads and adapters may become wider.

    Attributes:
        follows_casts: let a cast reach all parameters; buffers and metrics stay.
    """

    follows_casts = False

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        weights = [*self.parameters()] if self.follows_casts else weights_to_cast(self)
        free = {id(tensor) for weight in weights for tensor in (weight, weight.grad)}

        def keep(before: Tensor, after: Tensor) -> Tensor:
            if after.dtype == before.dtype or id(before) in free or _wider_parameter(before, after):
                return after
            return before.to(after.device)

        return keep


def _wider_parameter(before: Tensor, after: Tensor) -> bool:
    return isinstance(before, nn.Parameter) and after.dtype.itemsize > before.dtype.itemsize


class Float32Linear(GuardedCasts, nn.Linear):
    """A linear layer for a few numbers that are read directly: computed in at least float32, without autocast.

    Attributes:
        follows_casts: let a cast to a narrower dtype reach the weights; products stay in float32.
    """

    follows_casts = False

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        def keep(before: Tensor, after: Tensor) -> Tensor:
            narrower = after.dtype.itemsize < before.dtype.itemsize
            return before.to(after.device) if narrower and not self.follows_casts else after

        return keep

    def forward(self, input: Tensor) -> Tensor:
        """Return x W^T + b."""
        x = at_least_float32(input)
        with without_autocast(x.device):
            return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


def compute_in_float32(head: nn.Module) -> None:
    """Let the linear layers of a head, or an adapter's copies of it, compute in float32."""
    for module in head.modules():
        if type(module) is nn.Linear:
            module.__class__ = Float32Linear
            module.weight.data = at_least_float32(module.weight.data)
            if module.bias is not None:
                module.bias.data = at_least_float32(module.bias.data)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Turn autocast off, on devices that have it."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


@contextlib.contextmanager
def held_casts(network: nn.Module) -> Iterator[None]:
    """Let linear layers store their weights in autocast's dtype, if it is on, for many passes without gradients.

    Lightning's autocast caches no casts: decoding would cast every weight for every token. The numbers are the same.
    The casts are made on entry and freed on exit, and take half the memory of float32 weights. Not for DoRA, which
    reads the norms of weights.
    """
    kind = next(network.parameters()).device.type
    held: list[tuple[nn.Module, str, nn.Parameter]] = []
    dora = any(getattr(module, "lora_magnitude_vector", None) for module in network.modules())
    if torch.is_autocast_enabled(kind) and not dora:
        held = [
            (module, name, parameter)
            for module in network.modules()
            if isinstance(module, nn.Linear | Conv1D) and not isinstance(module, Float32Linear)
            for name, parameter in module.named_parameters(recurse=False)
            if type(parameter) is nn.Parameter and parameter.dtype == torch.float32
        ]
    try:
        for module, name, parameter in held:
            cast = parameter.detach().to(torch.get_autocast_dtype(kind))
            setattr(module, name, nn.Parameter(cast, requires_grad=False))
        yield
    finally:
        for module, name, parameter in held:
            setattr(module, name, parameter)


@contextlib.contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Give new tensors this dtype unless they specify one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
