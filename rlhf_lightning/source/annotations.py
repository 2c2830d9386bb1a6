"""Types of settings, from the text of annotations: `Positive | None`, `Literal["a", "b"]`, `list[int]`.

What a config can contain is checked: numbers, text, booleans, lists, sections. An annotation of anything else (a
tensor, a callable, a name that the source does not show) leaves the value unchecked.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from rlhf_lightning import value_types
from rlhf_lightning.source.constructors import is_dataclass
from rlhf_lightning.source.definitions import Definition, dotted_name

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
strict = with_config(STRICT)
_VALUE_TYPES = "rlhf_lightning.value_types"
_PLAIN: dict[str, Any] = {
    **{"int": int, "float": float, "str": str, "bool": bool, "None": None, "Any": Any, "object": Any},
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping"), value_types.Mapping),
    **dict.fromkeys(("list", "List", "Sequence", "Iterable", "tuple", "Tuple", "set", "Collection"), list[Any]),
    **dict.fromkeys(("Path", "PathLike"), value_types.Text),
    "LiteralString": str,
}
_LISTS = ("list", "List", "Sequence", "Iterable", "Collection", "set", "Set", "frozenset")
_MAPPINGS = ("dict", "Dict", "Mapping", "MutableMapping")
_BOUNDS = ("gt", "ge", "lt", "le", "pattern", "min_length", "max_length")
_ENUMS = ("Enum", "IntEnum", "StrEnum", "LightningEnum")


@dataclass(frozen=True)
class SectionOf:
    """Marks a section whose keys are the arguments of a dataclass."""

    target: str


def type_of(annotation: ast.expr | None, where: Definition) -> Any:
    """Return the type of a setting; Any if the annotation leaves it open.

    Args:
        annotation: the argument's annotation.
        where: the class or function that has it, in whose module names are looked up.
    """
    if annotation is None:
        return Any
    if isinstance(annotation, ast.Constant):
        if isinstance(annotation.value, str):  # quoted, for a name that is defined later
            try:
                return type_of(ast.parse(annotation.value, mode="eval").body, where)
            except SyntaxError:
                return Any
        return None if annotation.value is None else Any
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        return _union([type_of(side, where) for side in (annotation.left, annotation.right)])
    if isinstance(annotation, ast.Subscript):
        return _subscript(annotation, where)
    name = dotted_name(annotation)
    return Any if name is None else _named(name, where)


def _named(name: str, where: Definition) -> Any:
    """Return the type of a name: from `value_types`, a plain one, an alias, or a class."""
    found = where.lookup(name)
    if found is None:
        return _PLAIN.get(name.rpartition(".")[2], Any)
    if found.module.name == _VALUE_TYPES:
        return getattr(value_types, found.name, Any)
    if found.module.name.partition(".")[0] in ("typing", "pathlib", "collections", "typing_extensions", "os"):
        return _PLAIN.get(found.name, Any)
    node = found.node
    if isinstance(node, ast.ClassDef):
        return _class(found, node)
    value = getattr(node, "value", None)  # an alias: `Limit = int | float`, `type Limit = ...`
    return type_of(value, found) if isinstance(value, ast.expr) else Any


def _class(found: Definition, node: ast.ClassDef) -> Any:
    bases = {str(dotted_name(base)).rpartition(".")[2] for base in node.bases}
    if "TypedDict" in bases:
        return _typed_dict(found, node)
    if bases & {*_ENUMS, "Protocol", "str", "int", "float"} or node.keywords:
        return Any
    if is_dataclass(found):
        return Annotated[dict[str, Any], SectionOf(found.path)]
    return value_types.Section  # only `_target_` makes one


def _typed_dict(found: Definition, node: ast.ClassDef) -> Any:
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
    kinds = {each.target.id: type_of(each.annotation, found) for each in fields if isinstance(each.target, ast.Name)}
    made = typed_dict(found.name, kinds, STRICT)
    made.__doc__ = ast.get_docstring(node)
    return made


def typed_dict(name: str, kinds: dict[str, Any], config: ConfigDict) -> Any:
    """Return a section with these keys, which pydantic checks."""
    make: Any = TypedDict
    return with_config(config)(make(name, kinds, total=False))


def _subscript(annotation: ast.Subscript, where: Definition) -> Any:
    name = str(dotted_name(annotation.value)).rpartition(".")[2]
    items = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if name == "Literal":
        return _literal(items, where)
    if name == "Annotated":
        return _annotated(items, where)
    if name == "Optional":
        return _union([type_of(items[0], where), None])
    if name == "Union":
        return _union([type_of(item, where) for item in items])
    if name in ("Final", "InitVar", "Required", "NotRequired"):
        return type_of(items[0], where)
    if name in _LISTS:
        return list[type_of(items[0], where)]  # type: ignore[misc]
    if name in ("tuple", "Tuple"):
        return _tuple(items, where)
    if name in _MAPPINGS and len(items) == 2:
        key, value = (type_of(item, where) for item in items)
        return dict[key, value]  # type: ignore[valid-type]
    return Any


def _literal(items: list[ast.expr], where: Definition) -> Any:
    try:
        options = [ast.literal_eval(item) for item in items]
    except (ValueError, TypeError):
        return Any
    others = [option for option in options if not isinstance(option, bool)]
    if {True, False} <= {option for option in options if isinstance(option, bool)}:
        return bool | Literal[tuple(others)] if others else bool
    return Literal[tuple(options)]


def _tuple(items: list[ast.expr], where: Definition) -> Any:
    """Return a YAML list: of any length for `tuple[int, ...]`, else of this one."""
    if isinstance(items[-1], ast.Constant) and items[-1].value is ...:
        return list[type_of(items[0], where)]  # type: ignore[misc]
    inner = _union([type_of(item, where) for item in items])
    return Annotated[list[inner], Field(min_length=len(items), max_length=len(items))]  # type: ignore[valid-type]


def _annotated(items: list[ast.expr], where: Definition) -> Any:
    """Return a type with bounds: pydantic's `Field(gt=0, le=1)`, or annotated_types' `Gt(0)`."""
    base = type_of(items[0], where)
    bounds: dict[str, Any] = {}
    for item in items[1:]:
        name = str(dotted_name(item.func)).rpartition(".")[2] if isinstance(item, ast.Call) else ""
        try:
            if isinstance(item, ast.Call) and name == "Field":
                bounds |= {str(each.arg): ast.literal_eval(each.value) for each in item.keywords}
            elif isinstance(item, ast.Call) and name in ("Gt", "Ge", "Lt", "Le"):
                bounds[name.lower()] = ast.literal_eval(item.args[0])
        except (ValueError, TypeError, IndexError):
            return base
    known = {
        name: bounds[name] for name in ("gt", "ge", "lt", "le", "pattern", "min_length", "max_length") if name in bounds
    }
    return Annotated[base, Field(**known)] if known and base is not Any else base


def _union(parts: list[Any]) -> Any:
    return Any if Any in parts else reduce(or_, (type(None) if part is None else part for part in parts))
