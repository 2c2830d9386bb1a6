"""Plant payloads in everything that comes from outside, run the commands over them, and count how many fire.

    python scripts/canaries.py                 all of them; exit 1 if one fires
    python scripts/canaries.py --fast          those of the default tests
    python scripts/canaries.py --only pickle   those whose name contains the text

A payload that runs code writes a file `FIRED`. One meant for a terminal, a page or a card fires if it comes out
unchanged; an endless template, if the command does not end either. A command may refuse the input or work with it, but
it may not let the payload act. Every canary has a control: the same payload with the protection removed. A canary whose
control stays quiet could not fire at all, and also fails the script.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from bad_input_catalogue.fixtures import write_fixtures
from canary_catalogue.canary import Act, Canary, all_of
from canary_catalogue.code import CODE, PICKLES, SHADOWS
from canary_catalogue.paths import PATHS
from canary_catalogue.programs import PROGRAMS, TEMPLATES
from canary_catalogue.text import TEXT
from forked_command import preload, run_command

HASHES = "hashes.json"  # a stranger writes the hostile folder's hashes, or none
CANARIES = [*CODE, *PICKLES, *SHADOWS, *PROGRAMS, *TEMPLATES, *PATHS, *TEXT]


def what_fired(canary: Canary, fixtures: Path, prepare: Act) -> str:
    """Return how the payload acted; empty if it did not.

    Args:
        canary: what is run.
        fixtures: the initial content of the working folder.
        prepare: called in the process of the command, before it.
    """
    with tempfile.TemporaryDirectory(prefix="canary-") as scratch:
        folder = Path(scratch) / "a" / "b" / "work"
        shutil.copytree(fixtures, folder, symlinks=True, ignore=shutil.ignore_patterns(HASHES))
        code, out, err = run_command(
            canary.command, canary.words, folder, prepare, Path(scratch), canary.seconds, canary.typed
        )
        if code is None:
            return f"no answer within {canary.seconds:g} s"
        if any(Path(scratch).rglob("FIRED")):
            return "its code ran"
        if found := [path for path in canary.outside if (folder / path).exists() and not (fixtures / path).exists()]:
            return f"it wrote {found[0]}"
        texts = {} if canary.files and "victim" in canary.files[0] else {"what the command printed": out + err}
        for pattern in canary.files:
            for path in [folder / pattern] if pattern.startswith("..") else folder.glob(pattern):
                if path.is_file():
                    texts[str(path)] = path.read_text(errors="replace")
        return next(
            (f"it is in {name}" for name, text in texts.items() if canary.raw and re.search(canary.raw, text)), ""
        )


def answer(canary: Canary, fixtures: Path) -> tuple[str, str]:
    """Return the state of a canary: quiet, FIRED, or DEAD if its control is quiet too; and how it acted."""
    if how := what_fired(canary, fixtures, canary.plant):
        return "FIRED", how
    if how := what_fired(canary, fixtures, all_of(canary.plant, canary.control)):
        return "quiet", f"without the protection: {how}"
    return "DEAD", "without the protection it is quiet, too"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the canaries whose name contains this")
    parser.add_argument("--fast", action="store_true", help="run those of the default tests")
    arguments = parser.parse_args()
    canaries = [each for each in CANARIES if arguments.only in each.name and (each.fast or not arguments.fast)]
    preload()
    answers: list[str] = []
    with tempfile.TemporaryDirectory(prefix="canaries-") as scratch:
        fixtures = Path(scratch) / "fixtures"
        write_fixtures(fixtures)
        for canary in canaries:
            state, how = answer(canary, fixtures)
            answers.append(state)
            print(f"{state} {canary.name} ({how})", flush=True)
    fired, dead = answers.count("FIRED"), answers.count("DEAD")
    print(f"{fired} of {len(canaries)} fired; the controls of {len(canaries) - fired - dead} did, of {dead} did not")
    return 1 if fired or dead else 0


if __name__ == "__main__":
    sys.exit(main())
