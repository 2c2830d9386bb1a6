"""Every key of the configs with its type, range, default and meaning, for the reference and for `--help`.

Keys and types come from the schema, defaults from the files of `conf/` and else from the constructors, meanings from
the comments in those files and else from the docstrings: nothing is written a second time.
"""

from __future__ import annotations

import ast
import functools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml  # type: ignore[import-untyped]
from typing_extensions import get_type_hints, is_typeddict

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.schema import TOP_LEVELS, Train
from rlhf_lightning.config.validation import MISSING
from rlhf_lightning.source.constructors import Parameter, signature
from rlhf_lightning.source.definitions import definition
from rlhf_lightning.source.docstrings import argument_lines, docstring, documented_arguments
from rlhf_lightning.source.library_types import HANDS_ON
from rlhf_lightning.source.sections import section_of, section_type
from rlhf_lightning.value_checks import describe, shown, unwrap, without_null

_NOT_KEYS = ("defaults", "hydra")
_COMMENT = re.compile(r"^\s*#\s?(?P<text>.*)$")


@dataclass(frozen=True)
class Setting:
    """One key of a config.

    Attributes:
        key: dotted, as it is written after its section: `kl.target` of an algorithm.
        allowed: its type and range in words.
        default: as it is written in YAML; None where a value must be given, empty where nothing needs to be.
        meaning: in words; empty where neither the config nor the docstring says anything.
    """

    key: str
    allowed: str
    default: str | None
    meaning: str


def command_settings(command: str) -> list[Setting]:
    """Return the keys of a command's own config, such as `evaluate`; of groups, only the names."""
    own = conf_dir() / command / f"{command}.yaml"
    values, comments = _read(own if own.is_file() else conf_dir() / f"{command}.yaml")
    return list(_Section(values, TOP_LEVELS[command], comments).settings())


def option_settings(group: str, option: str, folder: Path | None = None) -> list[Setting]:
    """Return the keys of an option of a group, such as `algorithm` and `grpo`, or `model/adapter` and `lora`.

    Args:
        group: of the config folder.
        option: of the group.
        folder: the config folder; None: the project's own.
    """
    files = (folder or conf_dir()) / group
    values, comments = _option(files, option)
    others: dict[str, str] = {}  # an option may leave out a section that another one explains
    for file in sorted(files.glob("*.yaml")):
        others = {**yaml_comments(file.read_text(encoding="utf-8")), **others}
    comments = others | comments
    target = values.get("_target_")
    kinds = section_type(target, group.rpartition("/")[2]) if isinstance(target, str) else None
    return list(_Section(values, kinds, comments, target).settings())


def options(group: str) -> list[str]:
    """Return the options of a group of `conf/`."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def groups() -> list[str]:
    """Return the groups of `conf/` whose options are sections of a training config, and the groups inside those."""
    sections = get_type_hints(Train)
    folders = [path for path in conf_dir().iterdir() if path.is_dir() and path.name in sections]
    inner = [f"{path.name}/{each.name}" for path in folders for each in path.iterdir() if each.is_dir()]
    return sorted([*(path.name for path in folders), *inner])


def _option(folder: Path, option: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values and comments of an option, over those of the options that it builds on."""
    content, comments = _read(folder / f"{option}.yaml")
    values: dict[str, Any] = {}
    merged: dict[str, str] = {}
    for other in content.pop("defaults", []):
        if isinstance(other, str) and other != "_self_" and not other.startswith("/"):
            below, told = _option(folder, other)
            values, merged = _over(values, below), merged | told
    return _over(values, content), merged | comments


def _over(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in others.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = _over(merged[name], value) if both else value
    return merged


def _read(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    text = file.read_text(encoding="utf-8")
    return yaml.safe_load(text) or {}, yaml_comments(text)


@dataclass(frozen=True)
class _Section:
    """A section of a config: what its file gives, what the schema takes, and the class that it is for."""

    values: Mapping[str, Any]
    kinds: Any
    comments: Mapping[str, str]
    target: str | None = None
    prefix: str = ""

    def settings(self) -> Iterator[Setting]:
        """Yield the keys that the file has, in its order, then the others that the schema knows."""
        hints = get_type_hints(self.kinds, include_extras=True) if self.kinds is not None else {}
        given = [name for name in self.values if not name.startswith("_") and f"{self.prefix}{name}" not in _NOT_KEYS]
        for name in dict.fromkeys([*given, *hints]):
            yield from self._entry(name, hints.get(name))

    def _entry(self, name: str, kind: Any) -> Iterator[Setting]:
        value = self.values.get(name)
        inner = value if isinstance(value, Mapping) else {}
        plain = without_null(unwrap(kind))
        makes = inner.get("_target_") or section_of(kind)
        several = get_args(plain)[1] if get_origin(plain) is dict else None  # name -> section
        makes_each = section_of(several)
        if several is not None and (is_typeddict(unwrap(several)) or makes_each is not None):
            yield self._setting(name, kind)
            kinds = unwrap(several) if makes_each is None else section_type(makes_each)
            yield from self._inner(f"{name}.<name>", {}, kinds, makes_each)
        elif isinstance(makes, str):
            section = "" if self.target is None else name
            yield Setting(f"{self.prefix}{name}", "a section of keys", "", self._of_class(name, makes))
            yield from self._inner(name, inner, section_type(makes, section), makes)
        elif is_typeddict(plain):
            yield from self._inner(name, inner, plain, None)
        elif kind is None and inner:
            yield from self._inner(name, inner, None, None)
        else:
            yield self._setting(name, kind)

    def _inner(self, name: str, values: Mapping[str, Any], kinds: Any, target: str | None) -> Iterator[Setting]:
        yield from _Section(values, kinds, self.comments, target, f"{self.prefix}{name}.").settings()

    def _setting(self, name: str, kind: Any) -> Setting:
        key = f"{self.prefix}{name}"
        parameter = _parameters(self.target).get(name) if self.target is not None else None
        default: str | None = ""
        if name in self.values:
            default = None if self.values[name] == MISSING else as_yaml(self.values[name])
        elif parameter is not None:
            default = None if parameter.default is None else _written(parameter.default)
        meaning = self.comments.get(key) or self.comments.get(key.rpartition("<name>.")[2])
        allowed = "anything" if kind is None else describe(kind)
        return Setting(key, allowed, default, meaning or self._docstring(name, parameter))

    def _of_class(self, name: str, target: str) -> str:
        """Return what the comments, or else the class's docstring, say about a section."""
        key = f"{self.prefix}{name}"
        found = definition(target)
        said = self.comments.get(key) or self.comments.get(f"{key}._target_")
        return said or (docstring(found).partition("\n")[0] if found is not None else "")

    def _docstring(self, name: str, parameter: Parameter | None) -> str:
        if parameter is None:
            each = (self.kinds, *getattr(self.kinds, "__orig_bases__", ()))
            texts = (argument_lines(getattr(kind, "__doc__", None) or "").get(name) for kind in each)
            return next(filter(None, texts), "")
        text = documented_arguments(parameter.where).get(name, "")
        return text if parameter.where.path.startswith("rlhf_lightning.") else _first_sentence(text)


def _first_sentence(text: str) -> str:
    """Return what another library says first; its examples and directives stay in its own documentation."""
    return re.split(r"(?<=[.:]) (?=[A-Z.])|Example::| ?\.\. |\s*>>>", text.replace("``", "`"))[0].strip()


def _parameters(target: str) -> dict[str, Parameter]:
    found = definition(target)
    more = HANDS_ON.get(found.path) if found is not None else None
    return {**(signature(more).parameters if more is not None else {}), **signature(target).parameters}


def _written(default: ast.expr) -> str:
    """Return a constructor's default as it is written in YAML, or as it appears in the source."""
    try:
        return as_yaml(ast.literal_eval(default))
    except (ValueError, TypeError):
        return ast.unparse(default)


def as_yaml(value: Any) -> str:
    """Return a value as it is written in a config file or on the command line."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_yaml, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{name}: {as_yaml(each)}' for name, each in value.items())}}}"
    if isinstance(value, str):
        return value if value and value.isprintable() else json.dumps(value)
    return shown(value)


@functools.cache  # options of a group explain each other's keys
def yaml_comments(text: str) -> dict[str, str]:
    """Return the comment of each dotted key: what follows it on its line, and on the lines below that go on with it.

    >>> yaml_comments("lam: 0.95  # of GAE,\\n           # in [0, 1]\\nkl:\\n  target: 6  # nats")
    {'lam': 'of GAE, in [0, 1]', 'kl.target': 'nats'}
    """
    lines = text.splitlines()
    found: dict[str, str] = {}

    def walk(node: yaml.Node, prefix: str) -> None:
        for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
            block = isinstance(value, yaml.CollectionNode) and not value.flow_style
            row, column = (name.end_mark.line, name.end_mark.column + 1) if block else _end(value)
            if comment := _comment(lines, row, column):
                found[f"{prefix}{name.value}"] = comment
            walk(value, f"{prefix}{name.value}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is not None:
        walk(root, "")
    return found


def _end(value: yaml.Node) -> tuple[int, int]:
    return value.end_mark.line, value.end_mark.column


def _comment(lines: list[str], row: int, column: int) -> str:
    match = _COMMENT.match(lines[row][column:]) if row < len(lines) else None
    if match is None:
        return ""
    words = [match["text"]]
    begins = lines[row].index("#", column)
    for line in lines[row + 1 :]:
        more = _COMMENT.match(line)
        if more is None or line.index("#") < begins:
            break
        words.append(more["text"])
    return " ".join(words).strip()
