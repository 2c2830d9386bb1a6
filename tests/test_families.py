"""docs/models.md agrees with the sweep about families."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

ROOT = Path(__file__).parent.parent


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("families.table"), importlib.import_module("families.judge")


def listed(families: Any, classifiers: bool = False) -> tuple[str, dict[str, list[str]]]:
    """Return the list of docs/models.md, and its families by the first words of their paragraphs."""
    table, _ = families
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    begin, end = table.CLASSIFIERS if classifiers else (table.BEGIN, table.END)
    text = page.split(begin)[1].split(end)[0]
    paragraphs = re.findall(r"\*\*(Right|Refused|Not tried) \((\d+)\)(.*?)(?=\n\*\*|\Z)", text, flags=re.DOTALL)
    found: dict[str, list[str]] = {"Right": [], "Refused": [], "Not tried": []}
    for kind, count, rest in paragraphs:
        names = re.findall(r"`([\w.-]+)`", rest.rpartition("**")[2])
        assert len(names) == int(count)
        found[kind] += names
    return text, found


@pytest.mark.parametrize(
    ("classifiers", "known", "right"),
    [(False, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, 130), (True, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, 100)],
    ids=["causal", "classifiers"],
)
def test_every_family_of_this_transformers_is_listed_once(
    classifiers: bool, known: dict[str, str], right: int, families: Any
) -> None:
    text, found = listed(families, classifiers)
    assert f"transformers {transformers.__version__}:" in text
    assert sorted(name for names in found.values() for name in names) == sorted(known)
    assert len(found["Right"]) >= right


@pytest.mark.parametrize(
    ("family", "kind", "cached"), [("falcon_h1", "Right", True), ("mamba", "Right", False), ("bert", "Refused", True)]
)
def test_some_families_are_judged_as_they_are_listed(family: str, kind: str, cached: bool, families: Any) -> None:
    _, judge = families
    verdict = judge.judge(family)
    assert verdict.outcome == kind.lower()
    assert verdict.cached == cached
    assert family in listed(families)[1][kind]


@pytest.mark.parametrize(("family", "kind"), [("distilbert", "Right"), ("fnet", "Refused"), ("bart", "Refused")])
def test_some_classifiers_are_judged_as_they_are_listed(family: str, kind: str, families: Any) -> None:
    verdict = importlib.import_module("families.classifiers").judge_classifier(family)
    assert verdict.outcome == kind.lower()
    assert family in listed(families, classifiers=True)[1][kind]


@pytest.mark.slow
@pytest.mark.parametrize("classifiers", [False, True], ids=["causal", "classifiers"])
def test_the_sweep_finds_no_wrong_family_and_what_is_listed(classifiers: bool, families: Any) -> None:
    run = [sys.executable, str(ROOT / "scripts" / "sweep_families.py"), *(["--classifiers"] if classifiers else [])]
    done = subprocess.run([*run, "--list"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert listed(families, classifiers)[0].strip() == done.stdout.strip()
