"""Put each known silent bug in, on purpose, and count how many the tests catch.

    python scripts/mutants.py                 all of them; exit 1 if one survives
    python scripts/mutants.py --only whiten   those whose bug, name or file contains the text
    python scripts/mutants.py --list          names and tests, without running
    python scripts/mutants.py --markdown      the sections of docs/invariants.md
    python scripts/mutants.py --write         the same, written into the page

The tree is copied to a temporary folder, one mutant at a time is written there, and the tests that it names run on the
copy; the working tree is never touched. Every run is a fork of this process, which has imported the heavy libraries
once (not the package itself). Caught means that a test failed: a mutant that cannot be imported, or that dies of a
NameError or the like, is broken and counts as not caught.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import traceback
from pathlib import Path
from typing import Any

from mutant_catalogue import ROWS, SECTIONS, Mutant, Row

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "invariants.md"
MARK = "<!-- sections: written by scripts/mutants.py --write -->"
COPIED = ("rlhf_lightning", "tests", "conf", "pyproject.toml")
PRELOADED = ("numpy", "torch", "lightning.pytorch", "transformers", "peft", "datasets", "torchmetrics", "pytest")
SECONDS = 300  # for one mutant's tests, also on a slow machine
BROKEN = ("NameError", "UnboundLocalError", "AttributeError", "ImportError", "ModuleNotFoundError", "SyntaxError")


def check(mutant: Mutant, root: Path = ROOT) -> str:
    """Return the file with the mutant in it.

    Raises:
        ValueError: the text to replace does not occur exactly once.
    """
    source = (root / "rlhf_lightning" / mutant.file).read_text(encoding="utf-8")
    if (count := source.count(mutant.old)) != 1:
        raise ValueError(f"{mutant.name}: its text occurs {count} times in {mutant.file}:\n{mutant.old}")
    return source.replace(mutant.old, mutant.new)


def copy_tree(folder: Path) -> None:
    """Copy what the tests need of the repository."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


def preload() -> None:
    """Import once what every fork needs; what is missing is left to the tests."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in PRELOADED:
        importlib.import_module(name)
    for name in ("LlamaForCausalLM", "GPT2LMHeadModel", "AutoModelForSequenceClassification", "AutoTokenizer"):
        getattr(sys.modules["transformers"], name)  # transformers imports its modules on first use
    gc.collect()
    gc.freeze()  # what is here now is not for a fork to destroy


def run_tests(folder: Path, tests: list[str]) -> tuple[int | None, str]:
    """pytest's exit code (None: out of time) and its output, from a fork that sees only the copy."""
    log = folder / "pytest.log"
    child = os.fork()
    if child == 0:
        code = 3
        try:
            _become_pytest(folder, log)
            import pytest

            arguments = ["-x", "-q", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)]
            code = int(pytest.main(arguments, plugins=[_Exit()]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8", errors="replace")
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None, log.read_text(encoding="utf-8", errors="replace")
        time.sleep(0.05)


class _Exit:
    """Ends the fork as soon as pytest has reported: tearing down what it inherited can wait for threads it has not."""

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.code = int(exitstatus)

    def pytest_unconfigure(self, config: Any) -> None:
        config.get_terminal_writer().flush()
        os._exit(self.code)


def _become_pytest(folder: Path, log: Path) -> None:
    """In the fork: write to the log, and import from the copy alone."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.update(PYTHONPATH=str(folder), COLUMNS="500", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True  # a cached module may look as new as the next mutant's
    sys.path[:] = [str(folder), *(p for p in sys.path if Path(p).resolve() not in (ROOT, ROOT / "scripts"))]


def verdict(code: int | None, output: str) -> tuple[bool, str]:
    """Return whether a test caught the mutant, and which one, or what happened instead."""
    if code is None:
        return False, "out of time"
    failed = re.search(r"^FAILED (?:tests/)?(.+?)(?: - (.*))?$", output, re.MULTILINE)
    if code == 0:
        return False, "SURVIVED"
    if code == 2 and "KeyboardInterrupt" in output:  # which no test lets through without a mutant
        return True, "an interrupt that got through"
    if code != 1 or failed is None:
        return False, f"BROKEN: pytest's exit code is {code}, and no test failed"
    reason = failed[2] or ""
    if reason.startswith(BROKEN):
        return False, f"BROKEN: {reason}"
    return True, failed[1]


def selected(text: str) -> list[tuple[Row, list[Mutant]]]:
    """The rows, and of each the mutants, that contain the text."""
    rows = []
    for row in ROWS:
        found = [m for m in row.mutants if text.lower() in f"{row.bug} {m.name} {m.file}".lower()]
        if found:
            rows.append((row, found))
    return rows


def markdown() -> str:
    """Return the sections of docs/invariants.md: each bug, what holds without it, its mutants and its tests."""
    parts = []
    for title, rows in SECTIONS.items():
        parts.append(f"## {title}")
        for row in rows:
            tests = dict.fromkeys(re.sub(r"\[.*", "", test) for m in row.mutants for test in m.tests)
            parts += [
                f"### {row.bug[0].upper()}{row.bug[1:]}",
                _filled(f"**What holds:** {row.invariant}.", ""),
                "Mutants, all caught:",
                "\n".join(_filled(mutant.name, "- ") for mutant in row.mutants),
                "Tests:",
                "\n".join(f"- `{test.replace('::', ' :: ', 1)}`" for test in tests),
            ]
    return "\n\n".join(parts) + "\n"


def _filled(text: str, bullet: str) -> str:
    return textwrap.fill(
        text,
        100,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )


def write() -> None:
    """Replace the sections of docs/invariants.md."""
    before, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(f"{before}{mark}\n\n{markdown()}", encoding="utf-8")


def by_file(rows: list[tuple[Row, list[Mutant]]]) -> list[list[str]]:
    """Return the tests that the mutants name, those of one file together, each once."""
    files: dict[str, dict[str, None]] = {}
    for test in (test for _, mutants in rows for mutant in mutants for test in mutant.tests):
        files.setdefault(test.partition("::")[0], {})[test] = None
    return [list(tests) for tests in files.values()]


def run(rows: list[tuple[Row, list[Mutant]]]) -> int:
    """Run the mutants; returns how many were not caught."""
    total = caught = 0
    preload()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folder = Path(name)
        copy_tree(folder)
        started = time.monotonic()
        for tests in by_file(rows):
            code, output = run_tests(folder, tests)
            if code != 0:
                sys.exit(f"{output}\n{tests[0]} ... do not pass without a mutant (pytest's exit code is {code})")
        print(f"without a mutant all tests pass ({time.monotonic() - started:.0f} s)", flush=True)
        for row, mutants in rows:
            print(f"\n{row.bug}", flush=True)
            for mutant in mutants:
                path = folder / "rlhf_lightning" / mutant.file
                original, started = path.read_text(encoding="utf-8"), time.monotonic()
                path.write_text(check(mutant, folder), encoding="utf-8")
                found, by = verdict(*run_tests(folder, list(mutant.tests)))
                path.write_text(original, encoding="utf-8")
                total, caught = total + 1, caught + found
                mark = "caught" if found else "NOT CAUGHT"
                print(f"  {mark}  {mutant.name}  <-  {by}  [{time.monotonic() - started:.0f} s]", flush=True)
    print(f"\n{caught} of {total} mutants caught")
    return total - caught


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="run those whose bug, name or file contains it")
    parser.add_argument("--list", action="store_true", help="print the mutants and do not run them")
    parser.add_argument("--markdown", action="store_true", help="print the sections of docs/invariants.md")
    parser.add_argument("--write", action="store_true", help="write the sections of docs/invariants.md")
    options = parser.parse_args()
    rows = selected(options.only)
    if options.write:
        write()
    elif options.markdown:
        print(markdown(), end="")
    elif options.list:
        for row, mutants in rows:
            print(row.bug)
            for mutant in mutants:
                print(f"  {mutant.name}  ({mutant.file})  {', '.join(mutant.tests)}")
    elif not rows:
        sys.exit(f"--only {options.only}: no mutant contains it; see --list")
    else:
        sys.exit(1 if run(rows) else 0)


if __name__ == "__main__":
    main()
