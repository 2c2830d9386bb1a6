"""Bad input of every kind, given to every command, is answered in one line that names it: `scripts/bad_inputs.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bad_inputs.py"


def answered_well(*words: str) -> tuple[int, int, str]:
    """How many cases the script answered well, of how many, and what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment, check=False
    )
    found = re.search(r"(\d+) of (\d+) answered well", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1]), int(found[2]), done.stdout


def test_fast_bad_inputs_are_answered_well() -> None:
    good, cases, printed = answered_well("--fast")
    assert cases >= 40
    assert good == cases, printed


@pytest.mark.slow
def test_all_bad_inputs_are_answered_well() -> None:
    good, cases, printed = answered_well()
    assert cases >= 350
    assert good == cases, printed
