"""What the commands answer about themselves: `--help`, `--list` and completion. The config is composed by Hydra."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.commands.composition import compose_with_hydra
from rlhf_lightning.config.stage_overrides import split_overrides
from rlhf_lightning.errors import UserError
from rlhf_lightning.guide.completion import candidates, install
from rlhf_lightning.guide.composed import Composed, config_name, groups
from rlhf_lightning.guide.listing import listing
from rlhf_lightning.guide.pages import PAGES, page
from rlhf_lightning.guide.topics import topic_page
from rlhf_lightning.secret_text import shown


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add those to Hydra's own."""
    parser.add_argument("--list", nargs="?", const="")
    parser.add_argument("--install-completion", action="store_true")
    parser.add_argument("--complete")


def answer(command: str, arguments: argparse.Namespace) -> str | None:
    """Return what is printed where one of these options is given; None where none is.

    Raises:
        UserError: a word that names nothing.
    """
    name, folder = command.removeprefix("rlhf-"), arguments.config_dir
    if arguments.complete is not None:
        return "\n".join(_complete(name, arguments.complete))
    if arguments.install_completion:
        return install(Path.home())
    if arguments.list is not None:
        return listing(arguments.list, folder)
    if arguments.help:
        words = arguments.overrides
        return shown(topic_page(words, composed(name, words, folder))) if words else page(command, folder)
    return None


def composed(command: str, words: Sequence[str], config_dir: str | None = None) -> Composed:
    """Return a command's config, with those words that choose or set something applied. Raises UserError."""
    overrides = [word for word in words if "=" in word and not word.startswith("device_gb=")]
    if any(word.startswith("pipeline=") for word in overrides):
        command = "pipeline"  # of rlhf-plan, too
    if command == "pipeline":
        overrides, _ = split_overrides(overrides)
    config, hydra = compose_with_hydra(config_name(command), _with_defaults(command, overrides, config_dir), config_dir)
    return Composed(command, config, hydra["choices"], config_dir)


def _with_defaults(command: str, overrides: Sequence[str], config_dir: str | None) -> list[str]:
    """Return the overrides that Hydra takes if they choose from a group that the command's config does not mention."""
    names = [word.partition("=")[0] for word in overrides]
    if command == "pipeline" and "labelers" in names and "pipeline" not in names:
        return ["pipeline=rounds", *overrides]
    mentioned = {*groups(command), "pipeline", "labelers"}
    own = set(groups(command, config_dir)) - mentioned
    return [f"+{word}" if name in own else word for name, word in zip(names, overrides, strict=True)]


def _complete(command: str, line: str) -> list[str]:
    words = line.split()[1:] + ([""] if line.endswith(" ") else [])
    command = Path(line.split()[0]).name.removeprefix("rlhf-") if line.split() else command
    if command == "rlhf":
        command, words = words[0], words[1:]
        if not words:
            return [name for each in PAGES if (name := each.removeprefix("rlhf-")).startswith(command)]

    def compose(overrides: Sequence[str]) -> Composed:
        with contextlib.suppress(UserError):
            return composed(command, overrides)
        return composed(command, [])

    return candidates(command, words or [""], compose)
