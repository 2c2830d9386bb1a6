"""What an algorithm declares as class attributes, read from its source: all that other parts know about an algorithm.

    class MyModule(PreferenceModule):
        title: ClassVar[str] = "my method"
        roles: ClassVar[tuple[str, ...]] = ("policy",)

Values are literals, or names of constants; those of base classes are inherited. See `AlignmentModule` for each of them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.source.definitions import Definition, definition, dotted_name, module_of

KINDS = ("sft", "preference", "unpaired", "prompts", "steps", "rewarded", "safety")
ROLES = ("policy", "reference", "critic", "cost_critic", "reward", "cost", "q_heads", "teacher", "lagging")
_OURS = "rlhf_lightning"


@dataclass(frozen=True)
class Declaration:
    """The declarations of a class.

    Attributes:
        name: the class's own name.
        ours: this package defines it, so that everything it reads and logs is known.
        data: the kind of rows that it trains on; None if not declared.
        title: its name in text; empty if not declared.
        roles: the networks that take part, the trained one first.
        saves_mid_epoch: training can resume from a checkpoint saved within an epoch.
        whole_groups: the responses to a prompt must be in one micro-batch.
        engines: the values of `rollout.engine` that it can sample with.
        trained_per_prompt: how many of the responses to a prompt are trained on; None: all.
        logs: the names of the metrics that it logs, including those of its base classes.
    """

    name: str
    ours: bool = False
    data: str | None = None
    title: str = ""
    roles: tuple[str, ...] = ("policy",)
    saves_mid_epoch: bool = True
    whole_groups: bool = False
    engines: tuple[str, ...] = ("native", "vllm")
    trained_per_prompt: int | None = None
    logs: frozenset[str] = frozenset()

    @property
    def on_policy(self) -> bool:
        """Return whether it samples the responses that it learns from."""
        return self.data == "prompts"

    @property
    def scores(self) -> bool:
        """Return whether it trains a model that scores answers rather than a policy that gives them."""
        return self.roles[0] in ("reward", "cost")


def declaration(config: Mapping[str, Any]) -> Declaration:
    """Return what the algorithm of a training config declares.

    Raises:
        UserError: an attribute has a value that is not allowed.
    """
    section = config.get("algorithm")
    return declared(str(section.get("_target_", "")) if isinstance(section, Mapping) else "")


def declared(target: str) -> Declaration:
    """Return what the class named by a dotted path, or returned by the function there, declares."""
    found = class_of(target)
    if found is None:
        return Declaration(target.rpartition(".")[2])
    former, declaration = _declared.get(target, (None, None))
    if former is not found or declaration is None:
        declaration = _read(found)
        _declared[target] = (found, declaration)
    return declaration


_declared: dict[str, tuple[Definition, Declaration]] = {}


def _read(found: Definition) -> Declaration:
    values: dict[str, Any] = {"logs": frozenset()}
    for each in filter(None, found.lineage()):
        for name, value in _attributes(each).items():
            if name == "logs":
                values["logs"] |= _logs(found.name, _literal(value, each))
            elif name not in values and name in _CHECKS:
                values[name] = _CHECKS[name](found.name, _literal(value, each))
    return Declaration(found.name, found.module.name.split(".")[0] == _OURS, **values)


def class_of(target: str) -> Definition | None:
    """Return the class named by a dotted path, or the annotated return type of the function there."""
    found = definition(target)
    if found is not None and isinstance(found.node, ast.FunctionDef):
        returned = found.node.returns
        name = returned.value if isinstance(returned, ast.Constant) else dotted_name(returned)
        found = found.lookup(name) if isinstance(name, str) else None
    return found if found is not None and isinstance(found.node, ast.ClassDef) else None


def declared_data(config: Mapping[str, Any]) -> str | None:
    """Return the kind of rows that a training config's algorithm learns from, or else its data module's kind."""
    return declaration(config).data or data_kind(str(config["data"].get("_target_", "")))


def our_algorithms() -> list[Declaration]:
    """Return what every algorithm of this package declares."""
    module, _ = module_of(f"{_OURS}.algorithms.")
    names = [name for name in module.names if name.endswith("Module")] if module is not None else []
    found = [declared(f"{_OURS}.algorithms.{name}") for name in names]
    return [each for each in found if each.data is not None]


def data_kind(target: str) -> str | None:
    """Return the kind of rows of a data module, its class attribute `kind`; None if not declared."""
    found = class_of(target)
    for each in filter(None, found.lineage()) if found is not None else ():
        if "kind" in (values := _attributes(each)):
            return _kind(target.rpartition(".")[2], _literal(values["kind"], each), "kind")
    return None


def _attributes(each: Definition) -> dict[str, ast.expr]:
    """Return the values that the body of a class gives its attributes."""
    found = {}
    for node in each.node.body if isinstance(each.node, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
    return found


def _literal(value: ast.expr, where: Definition) -> Any:
    """Return the value of a literal, or of the constant that a name refers to; `...` if only running it would tell."""
    name = dotted_name(value)
    constant = where.lookup(name) if name is not None else None
    if constant is not None and isinstance(constant.node, ast.Assign | ast.AnnAssign):
        value = constant.node.value or value
    try:
        if isinstance(value, ast.Tuple):  # literal_eval does not accept `*(...)` in a tuple
            parts = [(each.value, True) if isinstance(each, ast.Starred) else (each, False) for each in value.elts]
            values = [(ast.literal_eval(part), starred) for part, starred in parts]
            return tuple(item for part, starred in values for item in (part if starred else (part,)))
        return ast.literal_eval(value)
    except (ValueError, TypeError):
        return ...


def _kind(name: str, value: Any, attribute: str = "data") -> str:
    if value not in KINDS:
        near = get_close_matches(str(value), KINDS, n=1)
        raise UserError(
            f"{name}.{attribute}: found {_shown(value)}; must be a literal: {' | '.join(KINDS)}"
            f"{f'; did you mean {near[0]}?' if near else ''}"
        )
    return str(value)


def _title(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{name}.title: found {_shown(value)}; must be a literal text, such as 'my method'")
    return value


def _roles(name: str, value: Any) -> tuple[str, ...]:
    given = value if isinstance(value, tuple | list) and value else (value,)
    unknown = [role for role in given if role not in ROLES]
    if unknown:
        near = get_close_matches(str(unknown[0]), ROLES, n=1)
        raise UserError(
            f"{name}.roles: found {_shown(unknown[0])}; must be a literal tuple of {' | '.join(ROLES)}, the trained "
            f"one first{f'; did you mean {near[0]}?' if near else ''}"
        )
    return tuple(given)


def _engines(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, tuple | list) or not value or not {"native", "vllm"}.issuperset(value):
        raise UserError(f"{name}.engines: found {_shown(value)}; must be a literal tuple of native | vllm")
    return tuple(value)


def _yes_or_no(attribute: str) -> Callable[[str, Any], bool]:
    def check(name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{name}.{attribute}: found {_shown(value)}; must be a literal: True | False")
        return value

    return check


def _count(name: str, value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(
            f"{name}.trained_per_prompt: found {_shown(value)}; must be a literal whole number >= 1, or None"
        )
    return value


def _logs(name: str, value: Any) -> frozenset[str]:
    if not isinstance(value, tuple | list | set):
        raise UserError(f"{name}.logs: found {_shown(value)}; must be a literal tuple of names of metrics")
    return frozenset(map(str, value))


def _shown(value: Any) -> str:
    return "an expression" if value is ... else repr(value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    **{"data": _kind, "title": _title, "roles": _roles, "engines": _engines, "trained_per_prompt": _count},
    **{name: _yes_or_no(name) for name in ("saves_mid_epoch", "whole_groups")},
}
