"""What docs/models.md says of families is what the sweep finds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parent.parent


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("families.table"), importlib.import_module("families.judge")


def listed(families: Any) -> tuple[str, dict[str, list[str]]]:
    """The list of docs/models.md, and its families by the words that their paragraph begins with."""
    table, _ = families
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    text = page.split(table.BEGIN)[1].split(table.END)[0]
    paragraphs = re.findall(r"\*\*(Right|Refused|Not tried) \((\d+)\)(.*?)(?=\n\n)", text + "\n\n", flags=re.DOTALL)
    found: dict[str, list[str]] = {"Right": [], "Refused": [], "Not tried": []}
    for kind, count, rest in paragraphs:
        names = re.findall(r"`([\w.-]+)`", rest.rpartition("**")[2])
        assert len(names) == int(count)
        found[kind] += names
    return text, found


def test_every_causal_family_of_this_transformers_is_listed_once(families: Any) -> None:
    text, found = listed(families)
    assert f"transformers {transformers.__version__}:" in text
    assert sorted(name for names in found.values() for name in names) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert len(found["Right"]) >= 130


@pytest.mark.parametrize(
    ("family", "kind", "cached"), [("falcon_h1", "Right", True), ("mamba", "Right", False), ("bert", "Refused", True)]
)
def test_some_families_are_judged_as_they_are_listed(family: str, kind: str, cached: bool, families: Any) -> None:
    _, judge = families
    verdict = judge.judge(family)
    assert verdict.outcome == kind.lower()
    assert verdict.cached == cached
    assert family in listed(families)[1][kind]


@pytest.mark.slow
def test_the_sweep_finds_no_wrong_family_and_what_is_listed(families: Any) -> None:
    run = [sys.executable, str(ROOT / "scripts" / "sweep_families.py")]
    done = subprocess.run([*run, "--list"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert listed(families)[0].strip() == done.stdout.strip()
