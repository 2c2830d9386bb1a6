"""The settings of a class or function, read from its source: the arguments of its constructor.

A constructor that passes `**kwargs` to its base class also takes that class's arguments, just as dataclasses take the
fields of their bases.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_lightning.source.definitions import Definition, definition, dotted_name

_DATACLASSES = {"dataclasses.dataclass", "dataclass"}
_NOT_FIELDS = {"ClassVar", "KW_ONLY"}


@dataclass(frozen=True)
class Parameter:
    """One argument.

    Attributes:
        annotation: its type; None without one.
        default: None if it must be given.
        where: the definition whose names the two use.
    """

    annotation: ast.expr | None
    default: ast.expr | None
    where: Definition = field(repr=False)


@dataclass(frozen=True)
class Signature:
    """The arguments that a class or function takes by name.

    Attributes:
        parameters: by name, those of the nearest class first.
        takes_more: it may take other names too, which the source does not show.
    """

    parameters: dict[str, Parameter]
    takes_more: bool = False


UNKNOWN = Signature({}, takes_more=True)


def signature(target: str) -> Signature:
    """Return what the class or function of a dotted path takes."""
    found = definition(target)
    return UNKNOWN if found is None else of_definition(found)


def of_definition(found: Definition) -> Signature:
    """Return what a class or function takes."""
    if isinstance(found.node, ast.FunctionDef | ast.AsyncFunctionDef):
        method = "." in found.name and not _is_static(found.node)
        own = _arguments(found.node, found, skip=1 if method else 0)
        return Signature(own, found.node.args.kwarg is not None)
    return _of_class(found) if isinstance(found.node, ast.ClassDef) else UNKNOWN


def setting(section: Mapping[str, Any], name: str, otherwise: Any = None) -> Any:
    """Return the value of a setting in a config's section: the given one, or else its default in the constructor.

    Args:
        section: with `_target_`.
        name: the setting.
        otherwise: its value if the class has no such setting.
    """
    if name in section:
        return section[name]
    parameter = signature(str(section.get("_target_", ""))).parameters.get(name)
    try:
        return otherwise if parameter is None or parameter.default is None else ast.literal_eval(parameter.default)
    except (ValueError, TypeError):
        return otherwise


def is_dataclass(found: Definition) -> bool:
    """Return whether a class is decorated as a dataclass."""
    decorators = found.node.decorator_list if isinstance(found.node, ast.ClassDef) else []
    names = [dotted_name(each.func if isinstance(each, ast.Call) else each) for each in decorators]
    return any(name in _DATACLASSES for name in names)


def _of_class(found: Definition) -> Signature:
    parameters: dict[str, Parameter] = {}
    given: set[str] = set()  # arguments that derived constructors pass to their bases themselves
    for each in found.lineage():
        if each is None:
            return Signature(parameters, takes_more=True)
        init = _method(each, "__init__")
        if init is not None:
            parameters |= _new(_arguments(init, each, skip=1), parameters, given)
            handed = _handed_on(init)
            if handed is None:
                return Signature(parameters, takes_more=init.args.kwarg is not None)
            given |= handed
        elif is_dataclass(each) or _is_named_tuple(each):
            parameters |= _new(_fields(each), parameters, given)
            if not any(isinstance(base, ast.expr) for base in getattr(each.node, "bases", [])):
                return Signature(parameters)
        elif _method(each, "__new__") is not None or (isinstance(each.node, ast.ClassDef) and each.node.decorator_list):
            return Signature(parameters, takes_more=True)  # a class decorator may do anything
    return Signature(parameters)


def _new(found: dict[str, Parameter], known: Mapping[str, Parameter], given: set[str]) -> dict[str, Parameter]:
    return {name: parameter for name, parameter in found.items() if name not in known and name not in given}


def _method(each: Definition, name: str) -> ast.FunctionDef | None:
    body = each.node.body if isinstance(each.node, ast.ClassDef) else []
    return next((node for node in reversed(body) if isinstance(node, ast.FunctionDef) and node.name == name), None)


def _handed_on(init: ast.FunctionDef) -> set[str] | None:
    """Return the names that a constructor passes to its base besides `**kwargs`; None if it does not pass them on."""
    if init.args.kwarg is None:
        return None
    for node in ast.walk(init):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != "__init__":
            continue
        names = [keyword.arg for keyword in node.keywords]
        if any(k.arg is None and dotted_name(k.value) == init.args.kwarg.arg for k in node.keywords):
            return {name for name in names if name is not None}
    return None


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, where: Definition, skip: int) -> dict[str, Parameter]:
    positional = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(positional) - len(node.args.defaults)), *node.args.defaults]
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return {argument.arg: Parameter(argument.annotation, default, where) for argument, default in pairs}


class _Written:
    """A default as it is written in the source, for a signature in a message."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def inspected(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[inspect.Parameter]:
    """Return a function's parameters as `inspect.signature` would, with the texts of their defaults."""
    it, kind = node.args, inspect.Parameter
    where: dict[str, Any] = {each.arg: kind.POSITIONAL_ONLY for each in it.posonlyargs}
    where |= {each.arg: kind.POSITIONAL_OR_KEYWORD for each in it.args}
    defaults = dict(zip(reversed(where), reversed(it.defaults), strict=False))
    where |= {it.vararg.arg: kind.VAR_POSITIONAL} if it.vararg else {}
    where |= {each.arg: kind.KEYWORD_ONLY for each in it.kwonlyargs}
    defaults |= {each.arg: x for each, x in zip(it.kwonlyargs, it.kw_defaults, strict=True) if x is not None}
    where |= {it.kwarg.arg: kind.VAR_KEYWORD} if it.kwarg else {}
    written = {name: _Written(ast.unparse(default)) for name, default in defaults.items()}
    return [kind(name, how, default=written.get(name, kind.empty)) for name, how in where.items()]


def _fields(each: Definition) -> dict[str, Parameter]:
    """Return the arguments of a dataclass's own constructor."""
    found: dict[str, Parameter] = {}
    for node in each.node.body if isinstance(each.node, ast.ClassDef) else ():
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = dotted_name(node.annotation.value if isinstance(node.annotation, ast.Subscript) else node.annotation)
        if str(name).rpartition(".")[2] in _NOT_FIELDS:
            continue
        keywords = {}
        if isinstance(node.value, ast.Call) and str(dotted_name(node.value.func)).rpartition(".")[2] == "field":
            keywords = {keyword.arg: keyword.value for keyword in node.value.keywords}
            if isinstance(init := keywords.get("init"), ast.Constant) and not init.value:
                continue
            default = keywords.get("default", keywords.get("default_factory"))
        else:
            default = node.value
        found[node.target.id] = Parameter(node.annotation, default, each)
    return found


def _is_named_tuple(each: Definition) -> bool:
    bases = each.node.bases if isinstance(each.node, ast.ClassDef) else []
    return any(str(dotted_name(base)).rpartition(".")[2] == "NamedTuple" for base in bases)


def _is_static(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(dotted_name(each) == "staticmethod" for each in node.decorator_list)
