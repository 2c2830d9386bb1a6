"""A command's composed config with the files it was made from, and what a word of its command line names there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlhf_lightning.config.config_files import conf_dir
from rlhf_lightning.config.schema import TOP_LEVELS
from rlhf_lightning.guide.explanations import comments, config_folders, content, option_files, package_of
from rlhf_lightning.guide.keys import Key, keys_of

_OF_PIPELINES = {"pipeline", "labelers", "logger"}


def config_name(command: str) -> str:
    """Return the top of a command's configs: rlhf-plan shares that of rlhf-train."""
    return "train" if command == "plan" else command


@dataclass(frozen=True)
class Composed:
    """A composed config.

    Attributes:
        command: without `rlhf-`.
        config: plain containers.
        choices: group -> the option that was taken, as Hydra says it.
        config_dir: the user's own config folder.
    """

    command: str
    config: Mapping[str, Any]
    choices: Mapping[str, Any]
    config_dir: str | None = None

    @cached_property
    def keys(self) -> dict[str, Key]:
        """Return every key by its name."""
        top = TOP_LEVELS[config_name(self.command)]
        return {key.name: key for key in keys_of(self.config, top, comments(self._files()))}

    def _files(self) -> list[tuple[Path, str]]:
        name = config_name(self.command)
        own = conf_dir() / name / f"{name}.yaml"
        files = [(own if own.is_file() else conf_dir() / f"{name}.yaml", "")]
        for group, option in self.choices.items():
            if not group.startswith("hydra") and isinstance(option, str):
                files += [(file, package_of(file, group)) for file in option_files(group, option, self.config_dir)]
        return files

    def groups(self) -> list[str]:
        """Return the groups that this command chooses from, including those of the user's own folder."""
        return groups(self.command, self.config_dir)


def groups(command: str, config_dir: str | None = None) -> list[str]:
    """Return the groups that a command chooses from, including those of the user's own folder."""
    if command not in ("train", "pipeline", "plan"):
        return []
    found: dict[str, None] = {}
    for folder in config_folders(config_dir):
        for file in sorted(folder.glob("*/**/*.yaml")):
            group = file.parent.relative_to(folder).as_posix()
            if not group.startswith("hydra") and group not in _TOPS:
                found[group] = None
    mine = [group for group in found if (group in _OF_PIPELINES) == (command == "pipeline") or group == "logger"]
    return sorted(mine, key=lambda group: _ORDER.index(group) if group in _ORDER else len(_ORDER))


# As a reader needs them.
_ORDER = (
    *("pipeline", "labelers", "experiment", "algorithm", "model", "model/adapter", "model/quantization", "data"),
    *("reward", "cost", "rollout", "optimizer", "scheduler", "trainer", "callbacks", "logger"),
)
_TOPS = set(TOP_LEVELS) - {"pipeline"}  # folders of a command's own config


def options(group: str, config_dir: str | None = None) -> list[str]:
    """Return the options of a group, including those of the user's own folder."""
    return sorted({file.stem for folder in config_folders(config_dir) for file in (folder / group).glob("*.yaml")})


def set_by(files: Iterable[Path], package: str) -> list[str]:
    """Return the dotted keys that config files set, sections by their name: what a page about an option covers."""
    found: dict[str, None] = {}
    for file in files:
        values = {name: value for name, value in content(file).items() if name != "defaults"}
        if package and "_target_" in values:
            found[package] = None
        elif package:
            found |= dict.fromkeys(f"{package}.{name}" for name in values)
        else:
            found |= dict.fromkeys(_leaves(values, ""))
    return list(found)


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        elif not name.startswith("_"):
            yield f"{prefix}{name}"
