"""What one test puts into the process does not reach the next, in whatever order a runner takes them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from rlhf_lightning.working_folder import import_from_working_folder


@pytest.mark.parametrize("turn", [1, 2])
def test_modules_of_the_same_name_are_different_modules(
    turn: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "of_one_test.py").write_text(f"turn = {turn}\n")
    monkeypatch.chdir(tmp_path)
    import_from_working_folder()
    sys.path.insert(0, str(tmp_path))
    assert importlib.import_module("of_one_test").turn == turn
