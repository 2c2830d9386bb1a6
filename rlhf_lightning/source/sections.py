"""The typed schema of a config's section, read from the constructor of the class that its `_target_` names.

A constructor's annotations say which values it takes (see `value_types`). What the annotations of Lightning, torch and
transformers leave open is in `library_types`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Union, get_args, get_origin

from pydantic import ConfigDict
from typing_extensions import Required

from rlhf_lightning.source import library_types
from rlhf_lightning.source.annotations import STRICT, SectionOf, type_of, typed_dict
from rlhf_lightning.source.constructors import Parameter, Signature, of_definition
from rlhf_lightning.source.declarations import declared
from rlhf_lightning.source.definitions import Definition, definition
from rlhf_lightning.value_checks import unwrap, without_null
from rlhf_lightning.value_types import A_SECTION

# Arguments that the commands themselves pass to a section's class.
_GIVEN = {
    "algorithm": {"model", "tokenizer", "optimizer", "scheduler"},
    "data": {"tokenizer", "seed"},
    "optimizer": {"params"},
    "scheduler": {"optimizer", "num_training_steps"},
    "call": {"folder", "model", "reward_model", "data"},
}
_GIVEN_TO_THOSE_THAT_SAMPLE = {"reward", "cost", "rollout", "seed"}


def section_type(target: str, name: str = "") -> Any:
    """Return the `TypedDict` of a section; None for a class whose source is not found.

    Args:
        target: the dotted path of its class or function.
        name: the section's own name, which determines what the commands pass to its class.
    """
    found = definition(target)
    if found is None or not hasattr(found.node, "body"):
        return None
    given = set(_GIVEN.get(name, ()))
    if name == "algorithm" and declared(target).on_policy:
        given |= _GIVEN_TO_THOSE_THAT_SAMPLE
    return _section_type(found, frozenset(given))


@lru_cache(maxsize=256)
def _section_type(found: Definition, given: frozenset[str]) -> Any:
    taken = parameters_of(found)
    parameters, takes_more = taken.parameters, taken.takes_more
    fields = {name: _field(name, parameter) for name, parameter in parameters.items() if name not in given}
    strict: ConfigDict = {**STRICT, "extra": "allow"} if takes_more else STRICT
    kept = {name: field for name, field in fields.items() if field is not None}
    return typed_dict(found.name, kept, strict)


def parameters_of(found: Definition) -> Signature:
    """Return what a class or function takes, with what it hands on to another one."""
    taken = of_definition(found)
    other = library_types.HANDS_ON.get(found.path)
    if other is None or (above := definition(other)) is None:
        return taken
    more = of_definition(above)
    return Signature(more.parameters | taken.parameters, more.takes_more)


def _field(name: str, parameter: Parameter) -> Any:
    """Return the type of a setting; None for an argument that is not one."""
    table = library_types.types_of(parameter.where.module.name)
    if name in table:
        kind = table[name]
        if kind is library_types.NOT_A_SETTING:
            return None
    else:
        kind = type_of(parameter.annotation, parameter.where)
        if name in library_types.NEVER_NULL and parameter.where.path.startswith("rlhf_lightning."):
            kind = _without_null(kind)
    return Required[kind] if parameter.default is None and name not in library_types.MAY_BE_LEFT_OUT else kind


def _without_null(kind: Any) -> Any:
    parts = [part for part in get_args(kind) if part is not type(None)]
    return parts[0] if get_origin(kind) in (Union, types.UnionType) and len(parts) == 1 else kind


def section_of(kind: Any) -> str | None:
    """Return the dataclass that a section of this type creates; None for any other type."""
    return next((mark.target for mark in _marks(kind) if isinstance(mark, SectionOf)), None)


def holds_own_names(kind: Any) -> bool:
    """Return whether a setting is a mapping whose names are the user's own: no class and no config knows them."""
    is_section = any(mark == A_SECTION or isinstance(mark, SectionOf) for mark in _marks(kind))
    return get_origin(without_null(unwrap(kind))) is dict and not is_section


def _marks(kind: Any) -> Iterator[Any]:
    yield from getattr(kind, "__metadata__", ())
    for part in get_args(kind):
        yield from _marks(part)
