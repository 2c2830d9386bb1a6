"""Checks a composed config against the typed schema, and reports a problem in one line."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from typing_extensions import get_type_hints, is_typeddict

from rlhf_lightning.config.spelling import did_you_mean, dotted_keys, nearest, nearest_key
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.definitions import definition, public_names
from rlhf_lightning.source.sections import section_of, section_type
from rlhf_lightning.value_checks import A_DOZEN, SHOWN, shown, unwrap, without_null, wrong_value

MISSING = "???"  # OmegaConf's mark for a value that must still be given

_UNKNOWN, _WRONG, _MISSING = range(3)  # reported in this order


@dataclass(frozen=True)
class Problem:
    """One problem: the full dotted key and the rest of the sentence."""

    rank: int
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


def validate(config: Mapping[str, Any], top: Any, prefix: str = "") -> None:
    """Check a composed, resolved config (plain containers) and every section in it.

    Args:
        config: the config; `"???"` marks missing values.
        top: the `TypedDict` of the top level.
        prefix: what the user writes before the config's keys, for example `stages.ppo.`.

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
    """Yield the problems of a section and of all sections inside it; `known` are all existing keys, for suggestions."""
    if schema is not None:
        yield from _section_problems(section, schema, prefix, known)
    hints = get_type_hints(schema, include_extras=True) if schema is not None else {}
    for name, value in section.items():
        key = f"{prefix}{name}"
        if value == MISSING:
            yield Problem(_MISSING, key, "missing")
        elif isinstance(value, Mapping):
            yield from _inner_problems(value, key, section_of(hints.get(name)), known)
        elif isinstance(value, list):
            for each in value:
                if isinstance(each, Mapping) and "_target_" in each:
                    yield from _inner_problems(each, key, None, known)


def _inner_problems(section: Mapping[str, Any], key: str, makes: str | None, known: Sequence[str]) -> Iterator[Problem]:
    """Yield the problems of a nested section; `makes` is the dataclass that it must create, if that is known."""
    target = section.get("_target_")
    if isinstance(target, str) and target.startswith("rlhf_lightning.") and definition(target) is None:
        match = did_you_mean(nearest(target, public_names()))
        yield Problem(_UNKNOWN, f"{key}._target_", f"no such class: {target}{match}")
    if makes is not None and section and target is None and not makes.startswith("rlhf_lightning."):
        yield Problem(_WRONG, f"{key}._target_", f"missing; give {key}._target_={makes}")
    name = "" if ".callbacks." in f".{key}" else key.rpartition(".")[2]
    yield from _problems(section, section_type(str(target or makes or ""), name), f"{key}.", known)


def _section_problems(section: Mapping[str, Any], schema: Any, prefix: str, known: Sequence[str]) -> Iterator[Problem]:
    # Names with a leading underscore are Hydra's own (_target_, _partial_, ...).
    values = {k: v for k, v in section.items() if not str(k).startswith("_") and v != MISSING}
    try:
        _adapter(schema).validate_python(values)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path, annotation = _locate(schema, item["loc"])
            key = prefix + ".".join(path)
            if item["loc"][-1] == "[key]" and not isinstance(item["input"], str):
                name = str(item["loc"][-2])
                yield Problem(
                    _WRONG,
                    prefix + ".".join(part for part in path if part not in (name, "[key]")),
                    f"found the name {shown(item['input'])}, which YAML does not read as text; choose one that begins "
                    "with a letter",
                )
            elif item["type"] == "extra_forbidden":
                yield Problem(_UNKNOWN, key, "no such key" + _suggestion(key, schema, path, prefix, known))
            elif item["type"] != "missing":
                yield Problem(_WRONG, key, wrong_value(key, _lookup(values, path), annotation))
            elif section.get(path[0]) != MISSING:
                yield Problem(_MISSING, key, "missing")


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _locate(schema: Any, loc: tuple[int | str, ...]) -> tuple[list[str], Any]:
    """Return the dotted path of a pydantic location without the names of union branches, and the type found there."""
    path: list[str] = []
    annotation: Any = schema
    for part in loc:
        annotation = without_null(unwrap(annotation))
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
        values = next(value for name, value in values.items() if str(name) == part)
    return values


def _suggestion(key: str, schema: Any, path: list[str], prefix: str, known: Sequence[str]) -> str:
    parent = prefix + "".join(f"{part}." for part in path[:-1])
    owner = without_null(unwrap(_locate(schema, tuple(path[:-1]))[1]))
    siblings = [f"{parent}{name}" for name in get_type_hints(owner)]
    match = nearest_key(key, {*siblings, *known} - {key})
    if match:
        return did_you_mean(match)
    named = siblings if len(siblings) <= A_DOZEN else siblings[:SHOWN]
    rest = len(siblings) - len(named)
    if not siblings:
        return "; it has no settings"
    more = f" and {rest} more; the same command with --cfg job shows them" if rest else ""
    return f"; allowed: {', '.join(named)}{more}"
