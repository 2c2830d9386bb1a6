"""The keys of a composed config with types, values and a line of explanation, from the schema and the constructors."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import get_type_hints, is_typeddict

from rlhf_lightning.guide.explanations import argument_text, summary
from rlhf_lightning.guide.library_texts import text_of
from rlhf_lightning.source.constructors import Parameter
from rlhf_lightning.source.definitions import definition
from rlhf_lightning.source.sections import parameters_of, section_of, section_type
from rlhf_lightning.value_checks import describe, literals, shown, unwrap, without_null

MISSING = "???"  # how OmegaConf writes a value that must still be given
UNKNOWN = object()  # the class decides where nothing is given


@dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
        name: dotted, as it is written on the command line.
        kind: the type of its values; None where nothing says it.
        value: what it is without an override; `???`: it must be given; `UNKNOWN`: nothing says it.
        text: a line of explanation; may be empty.
    """

    name: str
    kind: Any
    value: Any
    text: str

    @property
    def allowed(self) -> str:
        """Return the type in words, with its range."""
        return "" if self.kind is None else describe(self.kind).replace("a section of keys", "a section")

    @property
    def written(self) -> str:
        """Return the key with its value, as it is typed."""
        if self.value == MISSING:
            return f"{self.name}=..."
        if self.value is UNKNOWN or (self.kind is None and self.value == {}):
            return self.name
        return f"{self.name}={_typed(self.value)}"


def keys_of(config: Mapping[str, Any], schema: Any, comments: Mapping[str, str], prefix: str = "") -> Iterator[Key]:
    """Yield the keys of a config, section by section, those that it does not set included.

    Args:
        config: composed, as plain containers.
        schema: the `TypedDict` of its top level.
        comments: dotted key -> text, of its files.
        prefix: what comes before the names of these keys.
    """
    yield from _keys(config, get_type_hints(schema, include_extras=True), comments, prefix, {})


def _keys(
    section: Mapping[str, Any],
    hints: Mapping[str, Any],
    comments: Mapping[str, str],
    prefix: str,
    parameters: Mapping[str, Parameter],
) -> Iterator[Key]:
    for name in dict.fromkeys([*section, *hints]):
        if name.startswith("_"):
            continue  # Hydra's own
        key, kind, parameter = f"{prefix}{name}", hints.get(name), parameters.get(name)
        value = section[name] if name in section else _default(parameter)
        inner = list(_inner(value, kind, key, comments))
        if inner:
            yield from inner
        elif isinstance(value, Mapping) and "_target_" in value:  # of a class that has no settings
            said = comments.get(key) or comments.get(f"{key}._target_") or _summary(str(value["_target_"]))
            yield Key(key, None, {}, said)
        else:
            yield Key(key, kind, value, _text(key, kind, comments.get(key, ""), parameter))


def _text(key: str, kind: Any, comment: str, parameter: Parameter | None) -> str:
    """Return the config file's comment, unless it only repeats the choices and the docstring says more."""
    said = argument_text(parameter.where, key.rpartition(".")[2]) if parameter is not None else ""
    choices = [str(each) for each in literals(kind)] if kind is not None else []
    repeats = comment.split(" ")[0] in choices and " | " in comment
    return (said if said and (repeats or not comment) else comment) or text_of(key)


def _summary(target: str) -> str:
    found = definition(target)
    return "" if found is None else summary(found)


def _inner(value: Any, kind: Any, key: str, comments: Mapping[str, str]) -> Iterator[Key]:
    """Yield the keys of a section within another one; none for a plain value."""
    makes, plain = section_of(kind), without_null(unwrap(kind))
    section = value if isinstance(value, Mapping) else {}
    target = section.get("_target_") or (makes if value not in (None, UNKNOWN) else None)
    if target is not None:
        leaf = "" if ".callbacks." in f".{key}" else key.rpartition(".")[2]
        found = section_type(str(target), leaf)
        hints = get_type_hints(found, include_extras=True) if found is not None else {}
        yield from _keys(section, hints, comments, f"{key}.", _parameters(str(target)))
    elif is_typeddict(plain) and isinstance(value, Mapping):
        yield from _keys(section, get_type_hints(plain, include_extras=True), comments, f"{key}.", {})
    elif section:
        yield from _keys(section, {}, comments, f"{key}.", {})


def _parameters(target: str) -> dict[str, Parameter]:
    found = definition(target)
    return {} if found is None else parameters_of(found).parameters


def _default(parameter: Parameter | None) -> Any:
    """Return the value that a constructor uses if none is given."""
    if parameter is None:
        return UNKNOWN
    if parameter.default is None:
        return MISSING
    try:
        return ast.literal_eval(parameter.default)
    except (ValueError, TypeError):
        return _Expression(ast.unparse(parameter.default))


class _Expression(str):
    """A default that only running the code tells."""

    __slots__ = ()


def _typed(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_typed(each) for each in value)}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{_typed(each)}' for name, each in value.items())}}}"
    if isinstance(value, str):
        return value if value.isprintable() else f"$'{json.dumps(value)}'"  # bash turns \n into a line break
    return shown(value)
