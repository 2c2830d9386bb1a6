"""Checks values in configs and constructors against types with ranges, and reports problems in one line.

A `checked` constructor refuses a value outside its annotation with the line that the command prints:

    @checked("algorithm")
    def __init__(self, *args: Any, beta: Positive = 0.1, **kwargs: Any) -> None: ...

    MyModule(beta=-1)      UserError: algorithm.beta: found -1; must be a number > 0
"""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import NotRequired, Required, is_typeddict

from rlhf_lightning.errors import UserError

HUGE = 2.0**32  # bounds beyond it are named only to users who exceed them
A_DOZEN, SHOWN = 12, 8  # the most choices that are all listed, and how many are listed of more

Checked = TypeVar("Checked", bound=Callable[..., Any])
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


def checked(section: str) -> Callable[[Checked], Checked]:
    """Check the arguments of a constructor, a dataclass or a function against their annotations.

    Arguments annotated with a value type (see `value_types`) are checked; networks, tokenizers and the like are not.

    Args:
        section: the config section with these arguments, such as `algorithm.kl`.
    """

    def decorate(target: Checked) -> Checked:
        if isinstance(target, type):
            target.__init__ = _checking(target.__init__, section, target)  # type: ignore[misc]
            return target
        return _checking(target, section)

    return decorate


def _checking(function: Any, section: str, owner: type | None = None) -> Any:
    names = inspect.signature(function)

    @functools.cache
    def adapters() -> dict[str, tuple[Any, TypeAdapter[Any]]]:
        kinds = {
            name: _evaluated(each.annotation, _namespace(name, function, owner))
            for name, each in names.parameters.items()
        }
        return {name: (kind, TypeAdapter(kind, config=_STRICT)) for name, kind in kinds.items() if _holds_values(kind)}

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        try:
            given = names.bind_partial(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # it reports what is wrong itself
        for name, (kind, adapter) in adapters().items():
            if name in given:
                try:
                    adapter.validate_python(given[name])
                except ValidationError as error:
                    key = f"{section}.{name}"
                    raise UserError(f"{key}: {wrong_value(key, given[name], kind)}") from error
        return function(*args, **kwargs)

    return check


def _namespace(name: str, function: Any, owner: type | None) -> dict[str, Any]:
    """Return the names visible to an argument's annotation: a dataclass field may come from another module."""
    for cls in owner.__mro__ if owner is not None else ():
        if name in vars(cls).get("__annotations__", {}):
            return vars(sys.modules[cls.__module__])
    namespace: dict[str, Any] = function.__globals__
    return namespace


def _evaluated(annotation: Any, namespace: dict[str, Any]) -> Any:
    """Return what an annotation means; None if it names what is imported only for the type checker."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)  # the constructor's own source text
    except (NameError, TypeError, AttributeError):
        return None


def _holds_values(kind: Any) -> bool:
    """Return whether a type consists of numbers, texts, truth values and lists of them, and says more than `Any`."""
    if kind in (int, float, str, bool, type(None), Path) or get_origin(kind) is Literal:
        return True
    parts = get_args(kind)[:1] if get_origin(kind) is Annotated else get_args(kind)
    known = get_origin(kind) in (Annotated, Union, types.UnionType, list, tuple)
    return known and all(_holds_values(part) for part in parts)


_ESTIMATORS, _CONTROLLERS = ("k1", "k2", "k3", "abs"), ("adaptive", "fixed", "multiplicative", "pid")
# Values that belong to another key: (end of the key, value) -> what to say.
_MISPLACED = {
    **{("kl.kind", v): f"{v} is an estimator: algorithm.kl.estimator={v}" for v in _ESTIMATORS},
    **{("kl.estimator", v): f"{v} is a controller: algorithm.kl.kind={v}" for v in _CONTROLLERS},
    **{("rollout.engine", v): f"its settings are another option: rollout={v}" for v in ("native", "vllm")},
    **{("loss_type", v): "standard DPO is algorithm.loss_type=sigmoid" for v in ("dpo", "DPO")},
}


def wrong_value(key: str, value: Any, annotation: Any) -> str:
    """Return the text of what was found and what is allowed."""
    for (end, misplaced), message in _MISPLACED.items():
        if key.endswith(end) and value == misplaced:
            return message
    options = [str(option) for option in literals(annotation)]
    match = nearest(value, options) if isinstance(value, str) else None
    parts = value if isinstance(value, list | tuple) else [value]
    huge = any(isinstance(x, int | float) and not isinstance(x, bool) and not abs(x) <= HUGE for x in parts)
    return f"found {shown(value)}; must be {describe(annotation, all_bounds=huge)}{did_you_mean(match)}"


def nearest(name: str, candidates: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the most similar candidate, if its similarity (0 to 1) reaches `cutoff`."""
    found = difflib.get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    return found[0] if found else None


def did_you_mean(match: str | None) -> str:
    """Return the end of a line that names what was probably meant."""
    return f"; did you mean {match}?" if match else ""


def shown(value: Any) -> str:
    """Return the value as written in YAML, so that 1 and "1" differ."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, Mapping):
        return "a section"
    try:
        return f'"{value}"' if isinstance(value, str) else str(value)
    except ValueError:  # Python writes integers of up to 4,300 digits
        return "a whole number of thousands of digits"


def unwrap(annotation: Any) -> Any:
    """Return the type without its bounds, and without whether it must be given."""
    while get_origin(annotation) in (Required, NotRequired, Annotated):
        annotation = get_args(annotation)[0]
    return annotation


def without_null(annotation: Any) -> Any:
    """Return X for `X | None`, and any other type unchanged."""
    if get_origin(annotation) in (Union, types.UnionType):
        others = [part for part in get_args(annotation) if part is not type(None)]
        return unwrap(others[0]) if len(others) == 1 else annotation
    return annotation


def literals(annotation: Any) -> list[Any]:
    """Return the choices of a type."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [option for part in get_args(annotation) for option in literals(part)]


def describe(annotation: Any, all_bounds: bool = False) -> str:
    """Return a type in words: `a whole number >= 1 or null`.

    Args:
        annotation: the type.
        all_bounds: also name upper bounds that nobody reaches.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Required, NotRequired):
        return describe(parts[0], all_bounds)
    if origin is Annotated:
        return describe(parts[0], all_bounds) + _bounds(parts[0], parts[1:], all_bounds)
    if origin is Literal:
        more = [f"... ({len(parts)} in all)"] if len(parts) > A_DOZEN else []
        return " | ".join([*map(str, parts[:SHOWN] if more else parts), *more])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(part, all_bounds) for part in parts))
    if origin is list:
        return f"a list of: {describe(parts[0], all_bounds)}"
    if origin is dict and get_origin(parts[0]) is Literal:
        return f"a section of {describe(parts[0], all_bounds)}"
    if origin is dict or is_typeddict(annotation):
        return "a section of keys"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true | false", type(None): "null"}
    return words.get(annotation, "anything")


def _number(value: float) -> str:
    """Return a bound as people write it: integers with all their digits, but 1e12 for a one with twelve zeros."""
    if not float(value).is_integer():
        return f"{value:g}"
    digits = str(int(value))
    return f"1e{len(digits) - 1}" if len(digits) > 9 and set(digits[1:]) == {"0"} and digits[0] == "1" else digits


def _bounds(base: Any, metadata: tuple[Any, ...], all_bounds: bool) -> str:
    """The range of a type in words: ` >= 1`, ` in [0, 1)`, ` from 0 to 9`."""
    said = [it.description for it in metadata if getattr(it, "description", None)]
    limits = [item for info in metadata for item in getattr(info, "metadata", [])]
    found = {
        name: getattr(it, name)
        for it in limits
        for name in _SIGNS
        if hasattr(it, name) and (all_bounds or abs(getattr(it, name)) <= HUGE)
    }
    low, high = found.keys() & {"ge", "gt"}, found.keys() & {"le", "lt"}
    if low and high and base is float:
        ends = f"{'[' if 'ge' in low else '('}{_number(found[min(low)])}, {_number(found[min(high)])}"
        return f" in {ends}{']' if 'le' in high else ')'}"
    if base is int and (low, high) == ({"ge"}, {"le"}):
        return f" from {_number(found['ge'])} to {_number(found['le'])}"
    words = [f"{sign} {_number(found[name])}" for name, sign in _SIGNS.items() if name in found]
    words += said or [f"like {it.pattern}" for it in limits if getattr(it, "pattern", None)]
    return f" {' and '.join(words)}" if words else ""


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
