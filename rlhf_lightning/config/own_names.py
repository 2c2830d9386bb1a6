"""Which keys a command line may add without Hydra's plus: names of the user's own, such as a function's keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from typing_extensions import get_type_hints, is_typeddict

from rlhf_lightning.source.sections import holds_own_names, section_of, section_type
from rlhf_lightning.value_checks import unwrap, without_null


def may_be_added(key: str, config: Mapping[str, Any], top: Any) -> bool:
    """Return whether a key that a config lacks is in a mapping whose names are the user's own.

    `reward.arguments.x` is, and `rewards.mine.model`; so is `requires`, with several of them at once. `optimizer.lrr`
    and `rewards.mine.modle` are not, because their sections know their keys.

    Args:
        key: dotted.
        config: the composed config, as plain containers.
        top: the `TypedDict` of its top level.
    """
    return _may_be_added(key.split("."), config, top)


def _may_be_added(names: Sequence[str], section: Any, kinds: Any) -> bool:
    name, *rest = names
    kind = get_type_hints(kinds, include_extras=True).get(name) if kinds is not None else None
    if not rest:
        return holds_own_names(kind)
    inner = _inner(section, name)
    if (made := inner.get("_target_") or section_of(kind)) is not None:
        return _may_be_added(rest, inner, section_type(str(made), name))
    plain = without_null(unwrap(kind))
    if is_typeddict(plain):
        return _may_be_added(rest, inner, plain)
    if not holds_own_names(kind):
        return _may_be_added(rest, inner, None)  # of sections without a class of their own: callbacks
    each = get_args(plain)[1]
    made = section_of(each)
    known = section_type(made) if made is not None else unwrap(each) if is_typeddict(unwrap(each)) else None
    own, *below = rest
    if known is None or not below:
        return True
    return (len(below) == 1 and below[0] in get_type_hints(known)) or _may_be_added(below, _inner(inner, own), known)


def _inner(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = section.get(name)
    return value if isinstance(value, Mapping) else {}
