"""The reference of commands: what `--help` prints, and every key of a command that has a config of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from documentation.setting_pages import WIDE, key_table
from rlhf_lightning.config.reference import command_settings, groups
from rlhf_lightning.config.schema import TOP_LEVELS

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    """Return the names of the installed commands, as pyproject.toml declares them."""
    (section,) = re.findall(r"^\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    return re.findall(r"^([\w-]+) = ", section, re.M)


def help_of(command: str) -> str:
    """Return what `--help` of a command prints."""
    name = command.removeprefix("rlhf-")
    call = f"from rlhf_lightning.commands.entry import {name}; {name}()"
    arguments = [sys.executable, "-c", call, "--help"]
    return subprocess.run(arguments, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout


def command_pages(tell: Callable[[str], str] = help_of) -> dict[str, str]:
    """Return path -> Markdown of a page per command.

    Args:
        tell: returns what `--help` of a command prints.
    """
    pages = {f"reference/commands/{name}.md": _page(name, tell(name)) for name in commands()}
    names = "\n".join(f"- [`{name}`]({name}.md): {_summary(name, page)}" for name, page in _named(pages))
    pages["reference/commands/index.md"] = f"# Commands\n\nEvery command prints its page with `--help`.\n\n{names}\n"
    return pages


def _named(pages: dict[str, str]) -> list[tuple[str, str]]:
    return [(Path(path).stem, page) for path, page in pages.items()]


def _summary(name: str, page: str) -> str:
    """The first sentence of a page's help, after the command's name."""
    first = re.search(rf"^{name}: (.*)$", page, re.M)
    return first[1] if first is not None else ""


def _page(name: str, text: str) -> str:
    command = name.removeprefix("rlhf-")
    page = f"{WIDE}# {name}\n\n```text\n{text.rstrip()}\n```\n"
    if command not in TOP_LEVELS:
        return page
    chosen = {group for group in groups() if "/" not in group} if command == "train" else set()
    settings = [each for each in command_settings(command) if each.key not in chosen]
    links = ", ".join(f"[`{group}`](../config/{_file(group)})" for group in sorted(chosen))
    more = f"\nAnd the keys of its groups: {links}.\n" if chosen else ""
    return f"{page}\n## Every key\n\n{key_table(settings)}\n{more}"


def _file(group: str) -> str:
    return "index.md#algorithms" if group == "algorithm" else f"groups/{group}.md"
