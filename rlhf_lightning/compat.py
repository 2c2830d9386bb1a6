"""Private names of other libraries, each with the reason it is needed; a new version may break these first."""

from __future__ import annotations

import contextlib
import importlib
import pickle
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class GuardedCasts(nn.Module):
    """A module that has a say in what `.to(dtype)`, `.half()`, `.double()` and the like make of each of its tensors.

    All of them end in `nn.Module._apply`; torch has no public hook for it.
    """

    def guard_casts(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the function that takes a tensor and what the cast makes of it, and returns what is kept."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        keep = self.guard_casts()
        return super()._apply(lambda tensor: keep(tensor, fn(tensor)), recurse)


def kept_in_float32(network: nn.Module) -> tuple[str, ...]:
    """Parts of names of the weights that transformers leaves in float32 when it loads a network in half precision."""
    return tuple(getattr(network, "_keep_in_fp32_modules_strict", None) or ())


@contextlib.contextmanager
def loads_in_float32(*parts: str) -> Iterator[None]:
    """Let `from_pretrained` leave weights with these parts in their names in float32, whatever type it is asked for.

    Cast afterwards, they would have lost their digits. transformers has this for its own families only.
    """
    from transformers import PreTrainedModel

    own = PreTrainedModel._keep_in_fp32_modules_strict
    PreTrainedModel._keep_in_fp32_modules_strict = {*(own or ()), *parts}
    try:
        yield
    finally:
        PreTrainedModel._keep_in_fp32_modules_strict = own


def writes(tensor: Tensor) -> int:
    """How often torch has seen the tensor written to in place: what autograd checks saved tensors by."""
    return int(tensor._version)


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the index of a sharded checkpoint: its classes are torch's own descriptions of tensors and files."""

    def find_class(self, module_name: str, name: str) -> Any:
        if module_name in _OF_AN_INDEX and name.isidentifier():
            found = getattr(importlib.import_module(module_name), name, None)
            allowed = _OF_AN_INDEX[module_name]
            described = isinstance(found, type) and found.__module__ == module_name and not allowed
            if name in allowed or described or isinstance(found, torch.dtype):
                return found
        raise pickle.UnpicklingError(f"its index names {module_name}.{name}, which no checkpoint of torch's does")


_OF_AN_INDEX: dict[str, set[str]] = {  # module -> names; none: the classes that are defined there
    "torch.distributed.checkpoint.metadata": set(),
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}


def read_sharded_checkpoints_without_pickles() -> None:
    """Let torch read the folders of sharded checkpoints as it reads files with `weights_only=True`, from now on.

    It unpickles their index, and loads what is not a tensor with `weights_only=False`; there is no option for either.
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


def leave_signals_alone(trainer: Any) -> None:
    """Keep a Trainer from handling signals itself.

    On SIGTERM its handler communicates with the other processes from wherever the program is, which may hang them all.
    Lightning has no public switch for it.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
