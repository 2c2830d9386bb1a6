"""`--help algorithm=grpo`, `--help trainer`, `--help optimizer.lr`: the keys of an option, a section, or one key."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.composed import Composed, options, set_by
from rlhf_lightning.guide.explanations import header, option_files, package_of, summary
from rlhf_lightning.guide.keys import MISSING, Key
from rlhf_lightning.source.declarations import declared
from rlhf_lightning.source.definitions import definition
from rlhf_lightning.value_checks import did_you_mean, nearest

WIDTH = 80
_SELF = ("experiment", "pipeline", "labelers")  # groups whose options set keys of the whole config


def topic_page(words: Sequence[str], composed: Composed) -> str:
    """Return the page about what some words of a command line name.

    Args:
        words: `group`, `group=option`, `section`, `key` or `key=value`.
        composed: the command's config with these words as its overrides.

    Raises:
        UserError: a word names nothing.
    """
    return "\n\n".join(_topic(word, composed) for word in words)


def _topic(word: str, composed: Composed) -> str:
    name = word.lstrip("+~").partition("=")[0]
    if name in composed.groups():
        return _group(name, composed)
    if name == "keys":
        return _sections(composed)
    found = [key for key in composed.keys.values() if key.name == name or key.name.startswith(f"{name}.")]
    if found:
        return "\n".join(_entries(found))
    if composed.command == "pipeline" and name.startswith(("stages.", "round.")):
        raise UserError(
            f"{name}: a stage takes the keys of rlhf-train; rlhf-train --help "
            f"{'.'.join(name.split('.')[2:]) or 'keys'} explains them"
        )
    known = [*composed.groups(), *composed.keys, "keys"]
    leaves = {key.rpartition(".")[2]: key for key in reversed(known)}
    match = nearest(name, known) or leaves.get(name.rpartition(".")[2])
    raise UserError(
        f"{name}: no such group or key{did_you_mean(match)}"
        f"{'' if match else f'; rlhf-{composed.command} --help keys names them all'}"
    )


def _group(group: str, composed: Composed) -> str:
    option = composed.choices.get(group)
    if not isinstance(option, str):
        return _unchosen(group, composed)
    files = option_files(group, option, composed.config_dir)
    lines = textwrap.wrap(f"{group}={option}: {header(files[-1])}".rstrip(": "), WIDTH) if files else []
    lines += _target_lines(group, composed) + _chosen(group, composed)
    package = package_of(files[-1], group) if files else ""
    prefixes = set_by(files, package)
    keys = [key for key in composed.keys.values() if _is_under(key.name, prefixes)]
    if not keys:
        lines.append("It has no keys.")
    return "\n".join([*lines, "", *_entries(keys), "", *_others(group, option, composed)])


def _unchosen(group: str, composed: Composed) -> str:
    names = options(group, composed.config_dir)
    lines = textwrap.wrap(f"{group}: none is chosen; {group}={' | '.join(names)}", WIDTH, subsequent_indent="  ")
    return "\n".join([*lines, f"rlhf-{composed.command} --help {group}={names[0]} explains the keys of one"])


def _target_lines(group: str, composed: Composed) -> list[str]:
    """Return the class that a section makes, and what it says about itself."""
    section: Any = composed.config
    for part in group.split("/"):
        section = section.get(part) if isinstance(section, dict) else None
    target = section.get("_target_") if isinstance(section, dict) else None
    if not isinstance(target, str):
        return []
    found = definition(target)
    said = declared(target).title if group == "algorithm" else ""
    said = said or (summary(found) if found is not None else "")
    return textwrap.wrap(f"class {target}{f': {said}' if said else ''}", WIDTH, subsequent_indent="  ")


def _chosen(group: str, composed: Composed) -> list[str]:
    """Return what an option for a whole run chooses from the other groups."""
    if group not in _SELF:
        return []
    chosen = ((name, composed.choices.get(name)) for name in composed.groups() if name not in _SELF)
    taken = [f"{name}={option}" for name, option in chosen if isinstance(option, str)]
    return textwrap.wrap(f"It chooses {', '.join(taken)}.", WIDTH) if taken else []


def _is_under(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _others(group: str, option: str, composed: Composed) -> list[str]:
    rest = [name for name in options(group, composed.config_dir) if name != option]
    return textwrap.wrap(f"other options of {group}: {', '.join(rest)}", WIDTH) if rest else []


def _entries(keys: Iterable[Key]) -> list[str]:
    return [line for key in keys for line in entry(key)]


def entry(key: Key, width: int = WIDTH) -> list[str]:
    """Return a key as lines of text: its value, what is allowed, and what it is for."""
    allowed = f"{key.allowed}{'; must be given' if key.value == MISSING else ''}".removeprefix("; ")
    first = f"{key.written:<40}  {allowed}".rstrip()
    lines = [first] if len(first) <= width else [key.written, *_indented(allowed, width)]
    return lines + _indented(key.text, width)


def _indented(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")


def _sections(composed: Composed) -> str:
    """Return every key with its value, one per line."""
    return "\n".join(key.written for key in composed.keys.values())
