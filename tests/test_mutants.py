"""The list of mutants stays valid: each still fits its file, and names existing tests (`make mutants` runs them)."""

from __future__ import annotations

import ast
import importlib
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("mutants")


@cache
def names(path: str) -> set[str]:
    """Return the tests of a file, as `test_x` and `TestY::test_x`."""
    found = set()
    for node in ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


def test_the_text_of_every_mutant_occurs_exactly_once_and_the_bug_is_valid_python(mutants: Any) -> None:
    wrong = []
    for row in mutants.ROWS:
        for mutant in row.mutants:
            try:
                changed = mutants.check(mutant)
                ast.parse(changed)
            except (ValueError, SyntaxError) as error:
                wrong.append(f"{mutant.name}: {error}")
            else:
                if changed == (ROOT / "rlhf_lightning" / mutant.file).read_text(encoding="utf-8"):
                    wrong.append(f"{mutant.name}: nothing changes")
    assert not wrong, "\n".join(wrong)


def test_every_test_that_a_mutant_names_exists(mutants: Any) -> None:
    missing = []
    for row in mutants.ROWS:
        for mutant in row.mutants:
            assert mutant.tests, mutant.name
            for test in mutant.tests:
                path, _, name = re.sub(r"\[.*", "", test).partition("::")
                if not (ROOT / "tests" / path).is_file() or name not in names(path):
                    missing.append(f"{mutant.name}: {test}")
    assert not missing, "\n".join(missing)


def test_names_are_unique_and_every_bug_has_a_mutant(mutants: Any) -> None:
    mutant_names = [mutant.name for row in mutants.ROWS for mutant in row.mutants]
    assert len(set(mutant_names)) == len(mutant_names)
    assert len({row.bug for row in mutants.ROWS}) == len(mutants.ROWS)
    assert all(row.mutants for row in mutants.ROWS)


def test_the_sections_in_the_docs_are_the_list(mutants: Any) -> None:
    text = (ROOT / "docs" / "invariants.md").read_text(encoding="utf-8")
    assert text.partition(mutants.MARK)[2].strip() == mutants.markdown().strip(), "run scripts/mutants.py --write"


@pytest.mark.parametrize(
    ("code", "output", "caught"),
    [
        (1, "FAILED tests/a.py::test_x - AssertionError: no", True),
        (1, "FAILED tests/a.py::test_x[1 2] - assert 1 == 2", True),
        (0, "1 passed", False),
        (1, "ERROR tests/a.py::test_x - fixture", False),
        (2, "ERROR tests/a.py - SyntaxError", False),
        (1, "FAILED tests/a.py::test_x - NameError: name 'y'", False),
        (5, "no tests ran", False),
        (None, "", False),
    ],
)
def test_only_a_failed_test_catches(mutants: Any, code: int | None, output: str, caught: bool) -> None:
    assert mutants.verdict(code, output)[0] is caught
