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
ACTS = "[\x1b\x9b\x07\u202e]"  # a regular expression for what of them would act on a terminal
MARKUP = "<script>alert(1)</script><img src=x onerror=alert(1)>"
SECRET = "hunter2-and-more"

Act = Callable[[Path], object]


@dataclass(frozen=True)
class Canary:
    """A payload, and the command that meets it.

    Args:
        name: of the canary.
        command, words: what is run.
        plant: puts the payload into the working folder.
        control: the protection taken away. It is called in the process of the command after `plant`, with the folder,
            and may be a reader without any protection in place of the command: it then ends with `SystemExit`.
        raw: a regular expression that must match nothing that the command prints.
        files: shell patterns of files that must not hold `raw` either.
        typed: what standard input holds.
        outside: paths that must not be made.
        seconds: after which a command that goes on counts as fired.
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
    """Something that writes a pickle as torch does, in a zip archive."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb(), protocol=2))
            archive.writestr("archive/version", "3")
            archive.writestr("archive/byteorder", "little")

    return write


def bare_pickle(name: str) -> Act:
    """Something that writes a pickle as it is."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pickle.dumps(Bomb(), protocol=2))

    return write


def all_of(*acts: Act) -> Act:
    """Several, one after the other."""
    return lambda folder: [act(folder) for act in acts]
