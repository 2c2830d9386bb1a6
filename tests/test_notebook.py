"""The notebook runs as written, and needs nothing that a stranger lacks."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples/sft_to_dpo.ipynb"


def cells(kind: str) -> list[str]:
    """Return the sources of the notebook's cells of a kind, in order."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_stored_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_its_first_cell_installs_the_project_from_its_repository_where_it_is_missing() -> None:
    repository = re.search(r'^Repository = "([^"]+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert repository is not None
    install = ast.parse(cells("code")[0])
    (condition,) = [node for node in install.body if isinstance(node, ast.If)]
    assert ast.unparse(condition.test) == "importlib.util.find_spec('rlhf_lightning') is None"
    assert f"git+{repository[1]}" in ast.unparse(condition)


def test_its_badge_opens_this_notebook() -> None:
    badge = re.search(r"\]\((https://colab[^)]*\.ipynb)\)", cells("markdown")[0])
    assert badge is not None
    assert badge[1].endswith(f"/blob/main/{NOTEBOOK.relative_to(ROOT).as_posix()}")


@pytest.mark.slow
def test_it_runs_and_dpo_gains_on_sft(tmp_path: Path) -> None:
    code = "\n\n".join([*cells("code"), "print(json.dumps(evaluation.metrics))"])
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    metrics = json.loads(run.stdout.splitlines()[-1])
    assert metrics["dpo"]["gold_win_rate_vs_sft_low"] > 0.5
