"""List the packages of the lock with their licences.

    python scripts/licences.py           a Markdown table
    python scripts/licences.py --check   exit 1 if one has a licence that docs/dependencies.md does not allow

The licence is the one that the installed package states: in its expression, its classifiers or its text. Packages for
other systems and Python versions are in the lock but not installed; they are listed without one.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
# Permissive, or file-level copyleft (MPL), which does not extend to a program that imports them.
ALLOWED = re.compile(
    r"MIT|BSD|Apache|ISC|Python Software Foundation|PSF|Mozilla Public License|MPL|CNRI|Kiwi|HPND|Zlib|0BSD|CC0|BSL-1",
    re.IGNORECASE,
)
FORBIDDEN = re.compile(r"\b(A|L)?GPL|GNU |SSPL|Commons Clause|Business Source|CC-BY-NC|Proprietary", re.IGNORECASE)
READ = {  # packages whose metadata do not state it, and where it was read
    "huey": "MIT (LICENSE of the package)",
    "skops": "MIT (LICENSE of the package)",
}


def locked(lock: Path = LOCK) -> dict[str, str]:
    """Return name -> version of every package in the lock; if there are several versions, the first."""
    found: dict[str, str] = {}
    for line in lock.read_text().splitlines():
        if match := re.match(r"([\w.-]+)==([\w.+!-]+)", line):
            found.setdefault(match[1], match[2])
    return found


def licence(name: str) -> str | None:
    """Return what an installed package says about its licence; None if it is not installed here."""
    if name in READ:
        return READ[name]
    try:
        said = metadata(name)
    except PackageNotFoundError:
        return None
    if expression := said.get("License-Expression"):
        return str(expression)
    classifiers = [
        line.rpartition(" :: ")[2] for line in said.get_all("Classifier") or [] if line.startswith("License ::")
    ]
    text = str(said.get("License") or "").strip()
    return ", ".join(classifiers) or next(iter(text.splitlines()), "") or "not said"


def is_allowed(said: str) -> bool:
    """Return whether this project accepts a licence."""
    return bool(ALLOWED.search(said)) and not FORBIDDEN.search(said)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say only what is not allowed")
    arguments = parser.parse_args()
    table = {name: licence(name) for name in locked()}
    refused = {name: said for name, said in table.items() if said is not None and not is_allowed(said)}
    if not arguments.check:
        print("| package | version | licence |\n|---|---|---|")
        for name, version in locked().items():
            print(f"| {name} | {version} | {table[name] or 'not installed here'} |")
    for name, said in refused.items():
        sys.stderr.write(f"{name}: {said}: not a licence that docs/dependencies.md allows\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
