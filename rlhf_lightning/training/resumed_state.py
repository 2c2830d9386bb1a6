"""What a run resumes besides its weights: attributes that an algorithm declares, saved and restored in one place."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from rlhf_lightning.errors import UserError

HOOKS = ("on_save_checkpoint", "on_load_checkpoint")


def resumed_names(module: Any) -> list[str]:
    """Return the attributes that a module's class and its base classes declare in `resumes`."""
    return sorted({name for each in type(module).__mro__ for name in vars(each).get("resumes", ())})


def resumed_state(module: Any) -> dict[str, Any]:
    """Return the state of every declared attribute, for a checkpoint."""
    values = {name: getattr(module, name) for name in resumed_names(module)}
    return {name: _state(value) for name, value in values.items()}


def _state(value: Any) -> Any:
    if hasattr(value, "state_dict"):
        return value.state_dict()
    return tuple(value) if isinstance(value, tuple) else value  # torch does not load our classes, such as named tuples


def restore_state(module: Any, state: dict[str, Any]) -> None:
    """Give every declared attribute the state it had.

    Raises:
        UserError: the checkpoint lacks one.
    """
    for name in resumed_names(module):
        if name not in state:
            raise UserError(
                f"ckpt: it has no {name}, which {type(module).__name__} resumes; it was saved by another version of "
                "the algorithm, so begin from that run's model instead: model.path=<its run folder>"
            )
        value = getattr(module, name)
        if hasattr(value, "load_state_dict"):
            value.load_state_dict(state[name])
        else:
            setattr(module, name, state[name])


def keep_base_hooks(cls: type, base: type) -> None:
    """Run the base class's checkpoint hooks before a class's own, even if those do not call super()."""
    for name in HOOKS:
        if name in vars(cls):
            setattr(cls, name, _after(vars(base)[name], vars(cls)[name]))


def _after(of_base: Callable[..., None], own: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(own)
    def hook(self: Any, checkpoint: dict[str, Any]) -> None:
        of_base(self, checkpoint)
        own(self, checkpoint)

    return hook
