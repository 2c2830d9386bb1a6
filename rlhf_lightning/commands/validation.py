"""Checks a composed config against the typed schema and says what is wrong in one line."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from typing_extensions import NotRequired, Required, get_type_hints, is_typeddict

from rlhf_lightning.commands.library_schema import LIBRARY_SECTIONS
from rlhf_lightning.commands.package_schema import PACKAGE_SECTIONS
from rlhf_lightning.commands.spelling import did_you_mean, dotted_keys, nearest, nearest_key
from rlhf_lightning.errors import UserError

MISSING = "???"  # how OmegaConf writes a value that must still be given
TARGETS = {**PACKAGE_SECTIONS, **LIBRARY_SECTIONS}

_ESTIMATORS, _CONTROLLERS = ("k1", "k2", "k3", "abs"), ("adaptive", "fixed", "multiplicative", "pid")
# Values that belong to another key: (end of the key, value) -> what to say.
_MISPLACED = {
    **{("kl.kind", v): f"{v} is an estimator: algorithm.kl.estimator={v}" for v in _ESTIMATORS},
    **{("kl.estimator", v): f"{v} is a controller: algorithm.kl.kind={v}" for v in _CONTROLLERS},
    ("rollout.engine", "vllm"): "its settings are another option: rollout=vllm",
    **{("loss_type", v): "standard DPO is algorithm.loss_type=sigmoid" for v in ("dpo", "DPO")},
}


_HUGE = 2.0**32  # bounds beyond it are named to those who pass them
A_DOZEN, SHOWN = 12, 8  # keys that are listed, and of more than that

_UNKNOWN, _WRONG, _MISSING = range(3)  # told in this order


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the full dotted key and the rest of the sentence."""

    rank: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


def validate(config: Mapping[str, Any], top: Any, prefix: str = "") -> None:
    """Check a composed, resolved config (plain containers) and every section in it.

    Args:
        config: the config; `"???"` marks values that must still be given.
        top: the `TypedDict` of the top level.
        prefix: what the user writes before the config's keys, such as `stages.ppo.`.

    Raises:
        UserError: one line about the first problem, with the number of further ones.
    """
    problems = sorted(
        dict.fromkeys(_problems(config, top, prefix, dotted_keys(config, prefix))), key=lambda problem: problem.rank
    )
    missing = [problem.key for problem in problems if problem.rank == _MISSING]
    if problems and problems[0].rank == _MISSING:
        raise UserError(f"{', '.join(missing)}: missing; give {' '.join(f'{key}=...' for key in missing)}")
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{more}")


def _problems(section: Mapping[str, Any], schema: Any, prefix: str, known: Sequence[str]) -> Iterator[Problem]:
    """Problems of a section and of all sections inside it; `known` are all keys there are, for suggestions."""
    if schema is not None:
        yield from _section_problems(section, schema, prefix, known)
    for name, value in section.items():
        key = f"{prefix}{name}"
        if value == MISSING:
            yield Problem(_MISSING, key, "missing")
        elif isinstance(value, Mapping):
            target = value.get("_target_")
            if isinstance(target, str) and target.startswith("rlhf_lightning.") and target not in TARGETS:
                match = did_you_mean(nearest(target, TARGETS))
                yield Problem(_UNKNOWN, f"{key}._target_", f"no such class: {target}{match}")
            yield from _problems(value, TARGETS.get(str(target)), f"{key}.", known)


def _section_problems(section: Mapping[str, Any], schema: Any, prefix: str, known: Sequence[str]) -> Iterator[Problem]:
    # Names with underscores are Hydra's own (_target_, _partial_, ...).
    values = {k: v for k, v in section.items() if not str(k).startswith("_") and v != MISSING}
    try:
        _adapter(schema).validate_python(values)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path, annotation = _locate(schema, item["loc"])
            key = prefix + ".".join(path)
            if item["type"] == "extra_forbidden":
                yield Problem(_UNKNOWN, key, "no such key" + _suggestion(key, schema, path, prefix, known))
            elif item["type"] != "missing":
                yield Problem(_WRONG, key, _wrong_value(key, _lookup(values, path), annotation))
            elif section.get(path[0]) != MISSING:
                yield Problem(_MISSING, key, "missing")


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _locate(schema: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """The dotted path of a pydantic location without the names of union branches, and the type found there."""
    path: list[str] = []
    annotation: Any = schema
    for part in loc:
        annotation = _without_null(_unwrap(annotation))
        if is_typeddict(annotation):
            path.append(str(part))
            annotation = get_type_hints(annotation, include_extras=True).get(str(part))
        elif get_origin(annotation) is dict:
            path.append(str(part))
            annotation = get_args(annotation)[1]
        else:
            break
    return path, annotation


def _lookup(values: Any, path: list[str]) -> Any:
    for part in path:
        values = values[part]
    return values


def _suggestion(key: str, schema: Any, path: list[str], prefix: str, known: Sequence[str]) -> str:
    parent = prefix + "".join(f"{part}." for part in path[:-1])
    owner = _unwrap(_locate(schema, tuple(path[:-1]))[1])
    siblings = [f"{parent}{name}" for name in get_type_hints(owner)]
    match = nearest_key(key, {*siblings, *known} - {key})
    if match:
        return did_you_mean(match)
    named = siblings if len(siblings) <= A_DOZEN else siblings[:SHOWN]
    rest = len(siblings) - len(named)
    more = f" and {rest} more; the same command with --cfg job shows them" if rest else ""
    return f"; allowed: {', '.join(named)}{more}"


def _wrong_value(key: str, value: Any, annotation: Any) -> str:
    for (end, misplaced), message in _MISPLACED.items():
        if key.endswith(end) and value == misplaced:
            return message
    options = [str(option) for option in _literals(annotation)]
    match = nearest(value, options) if isinstance(value, str) else None
    huge = isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) <= _HUGE
    return f"found {_shown(value)}; allowed: {describe(annotation, all_bounds=huge)}{did_you_mean(match)}"


def _shown(value: Any) -> str:
    """As it is written in YAML, so that 1 and "1" differ."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, Mapping):
        return "a section"
    try:
        return f'"{value}"' if isinstance(value, str) else str(value)
    except ValueError:  # Python writes whole numbers of up to 4,300 digits
        return "a whole number of thousands of digits"


def _unwrap(annotation: Any) -> Any:
    while get_origin(annotation) in (Required, NotRequired, Annotated):
        annotation = get_args(annotation)[0]
    return annotation


def _without_null(annotation: Any) -> Any:
    """The one type of `X | None`; any other as it is."""
    if get_origin(annotation) in (Union, types.UnionType):
        others = [part for part in get_args(annotation) if part is not type(None)]
        return _unwrap(others[0]) if len(others) == 1 else annotation
    return annotation


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [option for part in get_args(annotation) for option in _literals(part)]


def describe(annotation: Any, all_bounds: bool = False) -> str:
    """A type of the schema in words: `a whole number >= 1 or null`.

    Args:
        annotation: the type.
        all_bounds: name upper bounds that nobody comes near, too.
    """
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Required, NotRequired):
        return describe(parts[0], all_bounds)
    if origin is Annotated:
        return describe(parts[0], all_bounds) + _bounds(parts[1:], all_bounds)
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
    """A bound as people write it: whole numbers with all their digits."""
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def _bounds(metadata: tuple[Any, ...], all_bounds: bool) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    limits = [item for info in metadata for item in getattr(info, "metadata", [])]
    words = [
        f"{sign} {_number(getattr(it, name))}"
        for it in limits
        for name, sign in signs.items()
        if hasattr(it, name) and (all_bounds or abs(getattr(it, name)) <= _HUGE)
    ]
    words += [f"like {it.pattern}" for it in limits if getattr(it, "pattern", None)]
    return f" {' and '.join(words)}" if words else ""
