"""Private names of torch."""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Tensors with shapes but no data, and the error raised where an operator needs the data: neither is public.
FakeTensors = FakeTensorMode
NUMBERS_ASKED = (DataDependentOutputException, DynamicOutputShapeException)


class GuardedCasts(nn.Module):
    """A module that can change what `.to(dtype)`, `.half()`, `.double()` and the like make of each of its tensors.

    All of them end in `nn.Module._apply`, for which torch has no public hook.
    """

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return a function that takes a tensor and the result of casting it, and returns which one to keep."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        keep = self.guard_casts()
        return super()._apply(lambda tensor: keep(tensor, fn(tensor)), recurse)


def writes(tensor: Tensor) -> int:
    """Return how often torch has seen in-place writes to the tensor, which autograd checks saved tensors by."""
    return int(tensor._version)


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, whose classes are torch's own descriptions of tensors and files."""

    def find_class(self, module_name: str, name: str) -> Any:
        if module_name in _OF_AN_INDEX and name.isidentifier():
            found = getattr(importlib.import_module(module_name), name, None)
            allowed = _OF_AN_INDEX[module_name]
            described = isinstance(found, type) and found.__module__ == module_name and not allowed
            if name in allowed or described or isinstance(found, torch.dtype):
                return found
        raise pickle.UnpicklingError(f"its index names {module_name}.{name}, which no checkpoint of torch's does")


_OF_AN_INDEX: dict[str, set[str]] = {  # module -> names; empty: the classes that are defined there
    "torch.distributed.checkpoint.metadata": set(),
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}


def read_sharded_checkpoints_without_pickles() -> None:
    """From now on, let torch read sharded checkpoint folders as it reads files with `weights_only=True`.

    torch unpickles their index, and loads what is not a tensor with `weights_only=False`; there is no option for
    either.
    """
    import torch.distributed.checkpoint.default_planner as planner
    import torch.distributed.checkpoint.filesystem as filesystem

    def load(file: Any, *arguments: Any, **options: Any) -> Any:
        return torch.load(file, *arguments, **{**options, "weights_only": True})

    replaced: list[tuple[Any, str, Any, Any]] = [
        (filesystem, "pickle", pickle, lambda file: _MetadataUnpickler(file).load()),
        (planner, "torch", torch, load),
    ]
    for module, name, former, by in replaced:
        setattr(module, name, SimpleNamespace(**{**vars(former), "load": by}))


class WatchedOperators(TorchDispatchMode):
    """While active, every operator goes through `__torch_dispatch__`. torch has no public name for it."""


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield the tensors among an operator's arguments or results. The walk through containers has no public name."""
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def storage_key(tensor: Tensor) -> int:
    """Return an identifier of the tensor's storage, which views share. Fake tensors have no addresses to compare."""
    return int(tensor.untyped_storage()._cdata)


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b computed by oneDNN. torch chooses the library itself, without a public switch per product."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def onednn_layout(weight: Tensor, rows: int) -> Tensor:
    """Return a copy of a weight in oneDNN's own layout, for products of this many rows; nothing public makes one."""
    copy: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return copy


def softmax_backward(gradient: Tensor, softmax: Tensor) -> Tensor:
    """Return the gradient of the input of a softmax over the last dimension, given the softmax output.

    It is autograd's own kernel; public functions would compute the softmax again.
    """
    return torch._softmax_backward_data(gradient, softmax, -1, softmax.dtype)
