"""Give every command bad input, and check that each answer is one line that names what is wrong.

    python scripts/bad_inputs.py                 all of them; exit 1 if one is answered badly
    python scripts/bad_inputs.py --only yaml     those whose name contains the text
    python scripts/bad_inputs.py --fast          those that the default tests run, about 40
    python scripts/bad_inputs.py --list          names and commands, without running
    python scripts/bad_inputs.py --show          what each command printed
    python scripts/bad_inputs.py --seconds       how long a wrong key or value takes, each in a separate process

A good answer means: exit code 2; one line on standard error that begins with `error: ` and names the key or file; no
traceback; and nothing in the folder of a finished run has changed. Every case runs in its own folder, in a fork of this
process, which has imported the heavy libraries once.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bad_input_catalogue import CASES, Case
from bad_input_catalogue.case import nothing
from bad_input_catalogue.configs import CONFIGS
from bad_input_catalogue.fixtures import FINISHED, write_fixtures
from forked_command import in_a_fork, preload, run_command

SECONDS = 120  # for one case, also on a slow machine
BOUND = 1.5  # seconds within which 95 % of the config errors must be answered


class Answer:
    """The outcome of a command: exit code (None: it had to be killed), and what it printed."""

    def __init__(self, code: int | None, out: str, err: str, changed: list[str]) -> None:
        self.code, self.out, self.err, self.changed = code, out, err, changed

    def fault(self, case: Case) -> str:
        """Return what is wrong with the answer, or an empty text."""
        if self.code is None:
            return f"no answer within {SECONDS} s"
        if self.code != case.code:
            return f"exit code {self.code}"
        if "Traceback (most recent call last)" in self.err + self.out:
            return "a traceback"
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        if len(errors) != 1:
            return f"{len(errors)} lines that begin with error:"
        if not re.search(case.names, errors[0]):
            return f"the line does not name {case.names!r}"
        if len(errors[0]) > 600:
            return f"the line has {len(errors[0])} characters"
        others = [line for line in self.err.splitlines() if line.strip() and line != errors[0]]
        if len(others) > case.further_lines:
            return f"{len(others)} further lines on standard error"
        return f"changed in the folder of a finished run: {', '.join(self.changed)}" if self.changed else ""


def answer(case: Case, fixtures: Path) -> Answer:
    """Run a case in a copy of the fixtures, in a separate process."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as scratch:
        folder = Path(scratch) / "work"
        shutil.copytree(fixtures, folder, symlinks=True)
        in_a_fork(lambda: case.prepare(folder))
        before = digests(folder / FINISHED)
        code, out, err = run_command(case.command, case.words, folder, nothing, Path(scratch), SECONDS)
        after = digests(folder / FINISHED)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        return Answer(code, out, err, changed)


def seconds(case: Case, fixtures: Path) -> float:
    """Return how long the command takes to answer, from the start of its process."""
    with tempfile.TemporaryDirectory(prefix="bad-input-") as scratch:
        folder = Path(scratch) / "work"
        shutil.copytree(fixtures, folder, symlinks=True)
        case.prepare(folder)
        command = [str(Path(sys.executable).with_name(f"rlhf-{case.command}")), *case.words]
        started = time.perf_counter()
        subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
        return time.perf_counter() - started


def measure_seconds(cases: list[Case], fixtures: Path) -> int:
    """Print the distribution of the seconds, and the slowest cases; return 1 if 5 % take longer than the bound."""
    took = sorted(((seconds(case, fixtures), case.name) for case in cases), reverse=True)
    p95 = took[len(took) // 20][0]
    for each, name in took[: len(took) // 10]:
        print(f"{each:5.2f} s  {name}")
    print(f"{len(took)} config errors: median {took[len(took) // 2][0]:.2f} s, 95 % within {p95:.2f} s ({BOUND} s)")
    return int(p95 > BOUND)


def digests(folder: Path) -> dict[str, str]:
    """Return the content of every file in a folder, by its name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--show", action="store_true", help="print what each command printed")
    parser.add_argument("--seconds", action="store_true", help="measure how long a config error takes")
    parser.add_argument("--fast", action="store_true", help="run those of the default tests alone")
    arguments = parser.parse_args()
    cases = [case for case in CASES if arguments.only in case.name and (case.fast or not arguments.fast)]
    if arguments.list:
        for case in cases:
            print(f"{case.name:40} rlhf-{case.command} {' '.join(case.words)}")
        return 0
    preload()
    bad = 0
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as scratch:
        fixtures = Path(scratch) / "fixtures"
        write_fixtures(fixtures)
        if arguments.seconds:
            return measure_seconds([case for case in cases if case in CONFIGS], fixtures)
        for case in cases:
            given = answer(case, fixtures)
            fault = given.fault(case)
            bad += bool(fault)
            print(f"{'BAD ' if fault else 'good'} {case.name}{f': {fault}' if fault else ''}", flush=True)
            if arguments.show or fault:
                lines = given.err.strip().splitlines()
                print(
                    "".join(f"       {line[:300]}\n" for line in (lines if arguments.show else lines[-4:])),
                    end="",
                    flush=True,
                )
    print(f"{len(cases) - bad} of {len(cases)} answered well")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
