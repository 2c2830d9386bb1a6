"""Check from source files that the classes and functions of a config exist, because imports take seconds.

Only certain errors are refused. A module that creates names at run time (a star import, `__getattr__`, an extension) is
left to the import itself.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import get_type_hints

from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.reward_calls import RewardCall, reward_call
from rlhf_lightning.setting_rules import OF_VERIFIERS, check_calls
from rlhf_lightning.source.constructors import inspected
from rlhf_lightning.source.definitions import constant_type, definition, dotted_name, longest_module
from rlhf_lightning.source.sections import section_type
from rlhf_lightning.value_checks import wrong_value
from rlhf_lightning.working_folder import import_from_working_folder

# A module that uses one of these may define names that its source does not show.
_DYNAMIC = {"globals", "vars", "setattr", "exec", "eval", "modules", "__dict__", "locals"}


def check_names(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first `_target_` or reward function of a config that certainly does not exist."""
    import_from_working_folder()
    for key, section in sections(config):
        check_function(f"{key}._target_", section["_target_"])
    for each in reward_functions(config):
        check_function(each.key, each.function)


class Named(NamedTuple):
    """A reward function that a config names: its key and dotted path, and its own settings and their key."""

    key: str
    function: str
    arguments: Mapping[str, Any]
    arguments_key: str


def reward_functions(config: Mapping[str, Any]) -> Iterator[Named]:
    """Yield every reward function that a training config calls."""
    yield from functions_of(config.get("reward") or {}, "reward.")
    for key, part in [("cost", config.get("cost") or {}), *held_out_scorers(config)]:
        yield from functions_of(part, f"{key}.")


def functions_of(reward: Mapping[str, Any], prefix: str) -> Iterator[Named]:
    """Yield every function of a reward's settings, whose names begin with `prefix`."""
    parts = {prefix: reward}
    parts |= {f"{prefix}components.{name}.": part for name, part in (reward.get("components") or {}).items()}
    for place, part in parts.items():
        if part.get("function"):
            yield Named(f"{place}function", part["function"], part.get("arguments") or {}, f"{place}arguments")
    for i, function in enumerate(reward.get("functions") or []):
        yield Named(f"{prefix}functions[{i}]", function, {}, f"{prefix}arguments")


def check_reward_calls(reward: Mapping[str, Any], prefix: str) -> None:
    """Raise UserError for a function that cannot be called as a reward, or for settings that none of them has.

    Only functions whose source is found are judged; the others, when they are imported.
    """
    calls: list[RewardCall | None] = []
    for key, function, arguments, arguments_key in functions_of(reward, prefix):
        found = definition(function) if "." in function else None
        node = found.node if found is not None and "." not in found.name else None
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not set(
            map(_decorator, node.decorator_list)
        ) <= {"checked"}:
            calls.append(None)
            continue
        if any(isinstance(each, ast.Yield | ast.YieldFrom) for each in _own_nodes(node)):
            raise UserError(f"{key}: {function} is a generator; write a function that returns a list of numbers")
        waits = isinstance(node, ast.AsyncFunctionDef)
        calls.append(reward_call(key, function, inspected(node), waits, arguments, arguments_key))
        if function.startswith(OF_VERIFIERS):
            _check_values(function, arguments, arguments_key)
    others = (reward, *(reward.get("components") or {}).values())
    if None not in calls and not any(each.get("url") for each in others):
        check_calls(any(call is not None and call.waits for call in calls), reward, prefix)


def _check_values(function: str, arguments: Mapping[str, Any], key: str) -> None:
    """Raise UserError for a setting of a verifier whose value does not fit its annotation."""
    kinds = get_type_hints(section_type(function), include_extras=True)
    for name, value in arguments.items():
        try:
            TypeAdapter(kinds[name], config=ConfigDict(strict=True)).validate_python(value)
        except ValidationError as error:
            raise UserError(f"{key}.{name}: {wrong_value(f'{key}.{name}', value, kinds[name])}") from error


def _decorator(node: ast.expr) -> str | None:
    return dotted_name(node.func if isinstance(node, ast.Call) else node)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function's body, without those of functions and classes inside it."""
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            yield node
            yield from _own_nodes(node)


def reward_models(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the dotted key and the path of every reward model that scores a training config's responses."""
    reward = config.get("reward") or {}
    parts = {"": reward, **{f".components.{name}": part for name, part in (reward.get("components") or {}).items()}}
    for name, part in parts.items():
        if part.get("model"):
            yield f"reward{name}.model", part["model"]
        yield from ((f"reward{name}.models.{number}", path) for number, path in enumerate(part.get("models") or ()))


def held_out_scorers(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the dotted key and the settings of every scorer that a callback compares with the reward."""
    for callback, section in (config.get("callbacks") or {}).items():
        scorers = section.get("scorers") if isinstance(section, Mapping) else None
        for name, part in scorers.items() if isinstance(scorers, Mapping) else ():
            if isinstance(part, Mapping):
                yield f"callbacks.{callback}.scorers.{name}", part


def check_function(key: str, function: str | None) -> None:
    """Raise UserError if a dotted path certainly does not exist, or names a constant."""
    if function and (why := why_missing(key, function)):
        raise UserError(f"{key}: cannot import {function}: {why}")
    found = definition(function) if function else None
    if found is not None and (kind := constant_type(found)) is not None:
        raise UserError(f"{key}: {function} is a constant ({kind}), which cannot be called")


def sections(config: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every section of a config that has a `_target_`, with its dotted key."""
    if isinstance(config, Mapping):
        if isinstance(config.get("_target_"), str):
            yield key, config
        for name, value in config.items():
            yield from sections(value, f"{key}.{name}".lstrip("."))
    elif isinstance(config, list):
        for each in config:
            yield from sections(each, key)


def why_missing(key: str, target: str) -> str | None:
    """Return why `package.module.name` cannot be imported; None if that is not certain.

    Raises:
        UserError: its source is not valid Python.
    """
    if not all(part.isidentifier() for part in target.split(".")):
        return "it is not a dotted path such as my_package.my_name"
    spec, name, rest = longest_module(target)
    if spec is None:
        return f"No module named {name!r}"
    if not rest or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    with blaming(f"{key}: cannot import {target}"):
        names = _names_of_file(spec.origin, Path(spec.origin).stat().st_mtime_ns)
    return None if names is None or rest[0] in names else f"{name} has no {rest[0]!r}"


@functools.lru_cache(maxsize=512)  # the stages of a pipeline name the same classes
def _names_of_file(file: str, _mtime: int) -> frozenset[str] | None:
    names = _top_level_names(Path(file).read_text(encoding="utf-8"), file)
    return None if names is None else frozenset(names)


def _top_level_names(source: str, file: str) -> set[str] | None:
    """Return the names that a module binds when it is imported; None if its source does not show them all."""
    tree = ast.parse(source, file)
    if any(_is_dynamic(node) for node in ast.walk(tree)) or any(_may_end_it(node) for node in tree.body):
        return None
    found = {"__name__", "__doc__", "__file__", "__path__"}
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        waiting += ast.iter_child_nodes(node)
    return None if {"*", "__getattr__"} & found else found


def _may_end_it(node: ast.stmt) -> bool:
    """Return whether a module's import may fail at this statement: the import itself then reports why."""
    if isinstance(node, ast.Import):
        return any(_is_missing(alias.name) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return not node.level and _is_missing(str(node.module))
    return isinstance(node, ast.Raise | ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call))


def _is_missing(module: str) -> bool:
    return find_spec(module.split(".")[0]) is None


def _is_dynamic(node: ast.AST) -> bool:
    named = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return named in _DYNAMIC or isinstance(node, ast.Global)
