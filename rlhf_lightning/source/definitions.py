"""Finding the class or function of a dotted path in its source file, through imports; nothing is imported."""

from __future__ import annotations

import ast
import importlib.machinery
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path

from rlhf_lightning.working_folder import import_from_working_folder

_ROOTS = {"object", "Generic", "Protocol", "ABC"}  # bases without a constructor
_DEEPEST = 30  # imports that lead to a definition: more than this is a cycle


@dataclass(frozen=True)
class Module:
    """A module's file, its full name, and whether it is a package, for its relative imports."""

    file: Path
    name: str
    is_package: bool

    @property
    def names(self) -> dict[str, ast.stmt]:
        """Return what its top level binds: name -> the statement that binds it."""
        stat = self.file.stat()
        return _names(self.file, stat.st_mtime_ns, stat.st_size)

    def absolute(self, node: ast.ImportFrom) -> str:
        """Return the full name of the module in a `from ... import` of this module."""
        if not node.level:
            return str(node.module)
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + self.is_package]
        return ".".join([*base, *([node.module] if node.module else [])])


@dataclass(frozen=True)
class Definition:
    """What a dotted path names: the defining statement, and the module whose names it uses."""

    node: ast.stmt
    module: Module = field(repr=False)
    name: str

    @property
    def path(self) -> str:
        """Return its dotted path, in the module that defines it."""
        return f"{self.module.name}.{self.name}"

    @property
    def is_current(self) -> bool:
        """Return whether the source still contains it, as it was read."""
        top = self.name.split(".")[0]
        node = self.module.names.get(top) if self.module.file.is_file() else None
        return node is self.node or (top != self.name and node is not None)

    def lookup(self, dotted: str) -> Definition | None:
        """Return what a dotted name refers to in this definition's module."""
        return in_module(self.module, dotted.split("."))

    def lineage(self) -> Iterator[Definition | None]:
        """Yield the class and its base classes, each before its own bases; None for one whose source is not found."""
        yield self
        for base in self.node.bases if isinstance(self.node, ast.ClassDef) else ():
            name = dotted_name(base.value if isinstance(base, ast.Subscript) else base)
            if name is not None and name.rpartition(".")[2] in _ROOTS:
                continue
            found = self.lookup(name) if name is not None else None
            if found is None or not isinstance(found.node, ast.ClassDef):
                yield None
            elif found.node is not self.node:
                yield from found.lineage()


def definition(target: str) -> Definition | None:
    """Return the class, function or constant of a dotted path; None if its source does not show it."""
    import_from_working_folder()
    if not all(part.isidentifier() for part in target.split(".")):
        return None
    key = (target, os.getcwd())
    found = _found.get(key)
    if found is None or not found.is_current:
        found = _resolve(target, 0)
        if found is not None:
            _found[key] = found
    return found


_found: dict[tuple[str, str], Definition] = {}


def _resolve(target: str, depth: int) -> Definition | None:
    module, rest = module_of(target)
    return in_module(module, rest, depth) if module is not None and rest else None


def in_module(module: Module, names: list[str], depth: int = 0) -> Definition | None:
    """Return what a dotted name, given as its parts, refers to in a module."""
    if depth > _DEEPEST:
        return None
    first, rest = names[0], names[1:]
    node = module.names.get(first)
    if node is None:
        return _from_star(module, names, depth)
    if isinstance(node, ast.ImportFrom):
        alias = next(alias for alias in node.names if (alias.asname or alias.name) == first)
        return _resolve(".".join([module.absolute(node), alias.name, *rest]), depth + 1)
    if isinstance(node, ast.Import):
        alias = next(alias for alias in node.names if (alias.asname or alias.name.split(".")[0]) == first)
        return _resolve(".".join([alias.name if alias.asname else first, *rest]), depth + 1)
    value = getattr(node, "value", None)
    other = dotted_name(value) if isinstance(value, ast.expr) else None
    if other is not None and other != first:  # a second name for something else
        return in_module(module, [*other.split("."), *rest], depth + 1)
    if rest:
        return _member(Definition(node, module, first), rest)
    return Definition(node, module, first)


def _from_star(module: Module, names: list[str], depth: int) -> Definition | None:
    for node in module.names.values():
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            found = _resolve(".".join([module.absolute(node), *names]), depth + 1)
            if found is not None:
                return found
    return None


def _member(owner: Definition, names: list[str]) -> Definition | None:
    """Return a function or class that the body of a class defines."""
    for name in names:
        body = owner.node.body if isinstance(owner.node, ast.ClassDef) else []
        node = next((each for each in body if getattr(each, "name", None) == name), None)
        if node is None:
            return None
        owner = Definition(node, owner.module, f"{owner.name}.{name}")
    return owner


def constant_type(found: Definition) -> str | None:
    """Return the type of a constant, by its literal; None for anything that may be callable."""
    value = getattr(found.node, "value", None) if isinstance(found.node, ast.Assign | ast.AnnAssign) else None
    try:
        return None if value is None else type(ast.literal_eval(value)).__name__
    except (ValueError, TypeError):
        return None


def public_names() -> list[str]:
    """Return the dotted paths of this package's exports."""
    modules = (module_of(f"rlhf_lightning.{folder}.")[0] for folder in _PUBLIC)
    return [f"{each.name}.{name}" for each in modules if each is not None for name in each.names if name[0] not in "_*"]


_PUBLIC = ("algorithms", "models", "data", "rewards", "rollout", "callbacks", "simulation")


def module_of(target: str) -> tuple[Module | None, list[str]]:
    """Return the longest prefix of a dotted path that is a module with a source file, and the remaining names."""
    spec, name, rest = longest_module(target)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None, rest
    return Module(Path(spec.origin), name, spec.submodule_search_locations is not None), rest


def longest_module(target: str) -> tuple[ModuleSpec | None, str, list[str]]:
    """Return the spec and the name of the longest prefix of a dotted path that is a module, and the remaining names."""
    top, *rest = target.split(".")
    spec = find_spec(top)
    if spec is None:
        return None, top, rest
    name, folders = top, [str(folder) for folder in spec.submodule_search_locations or []]
    while rest and (below := _submodule(folders, rest[0])) is not None:
        spec, name = below, f"{name}.{rest[0]}"
        folders = _folders(spec, folders, rest.pop(0))
    return spec, name, rest


def _submodule(folders: list[str], name: str) -> ModuleSpec | None:
    """Return the module of this name in a package's folders, by its last name alone: no parent is imported."""
    return importlib.machinery.PathFinder.find_spec(name, folders) if folders else None


def _folders(spec: ModuleSpec, above: list[str], name: str) -> list[str]:
    """Return where a package's modules are; one without an __init__.py is in each of the parent's folders."""
    if spec.origin is not None:
        return list(spec.submodule_search_locations or [])
    return [str(Path(folder, name)) for folder in above if Path(folder, name).is_dir()]


def dotted_name(node: ast.expr | None) -> str | None:
    """Return `a.b.c` for an expression that is such a name; None for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := dotted_name(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


@lru_cache(maxsize=512)
def _names(file: Path, _mtime: int, _size: int) -> dict[str, ast.stmt]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, UnicodeDecodeError):  # the import itself reports it
        return {}
    return _bound(tree.body)


def _bound(body: list[ast.stmt]) -> dict[str, ast.stmt]:
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found |= {_star(node, alias): node for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: node for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.If | ast.Try | ast.With):  # the first of several alternatives counts
            blocks = [node.body, *(handler.body for handler in getattr(node, "handlers", []))]
            blocks += [getattr(node, "orelse", []), getattr(node, "finalbody", [])]
            inner: dict[str, ast.stmt] = {}
            for block in blocks:
                inner = {**_bound(block), **inner}
            found |= inner
    return found


def _star(node: ast.ImportFrom, alias: ast.alias) -> str:
    return f"* {node.level} {node.module}" if alias.name == "*" else alias.asname or alias.name
