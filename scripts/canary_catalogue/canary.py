"""One payload, and its control: the same payload without the protection, which must fire."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bad_input_catalogue.case import nothing

FIRES = "open('FIRED', 'w').close()\n"
ESCAPES = "\x1b[31m\x1b]0;owned\x07\x9b2J\u202e"
ACTS = "[\x1b\x9b\x07\u202e]"  # a regular expression for what would act on a terminal
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
SECRET = "hunter2-and-more"

Act = Callable[[Path], object]


@dataclass(frozen=True)
class Canary:
    """A payload, and the command that meets it.

    Args:
        name: name of the canary.
        command, words: what is run.
        plant: puts the payload into the working folder.
        control: removes the protection. It is called in the process of the command after `plant`, with the folder, and
            may instead be a reader without any protection that replaces the command: it then ends with `SystemExit`.
        raw: a regular expression that must match nothing that the command prints.
        files: shell patterns of files that must not contain `raw` either.
        typed: the content of standard input.
        outside: paths that must not be created.
        seconds: a command that runs longer counts as fired.
        fast: whether the default tests run it.
    """

    name: str
    command: str
    words: list[str]
    plant: Act = nothing
    control: Act = field(kw_only=True)
    raw: str = ""
    files: tuple[str, ...] = ()
    typed: bytes = b""
    outside: tuple[str, ...] = ()
    seconds: float = 120
    fast: bool = False


class Bomb:
    """Unpickling it writes the file."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (FIRES,)


def pickled(name: str) -> Act:
    """Return an action that writes a pickle as torch does, in a zip archive."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
            archive.writestr("archive/version", "3")
            archive.writestr("archive/byteorder", "little")

    return write


def bare_pickle(name: str) -> Act:
    """Return an action that writes a plain pickle."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Bomb(), protocol=2))

    return write


def all_of(*acts: Act) -> Act:
    """Return several actions, one after the other."""
    return lambda folder: [act(folder) for act in acts]
