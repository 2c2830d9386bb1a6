"""Faults of the machine and of what a run talks to cost nothing that was finished: `scripts/faults.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "faults.py"


def taken_well(*words: str) -> tuple[int, int, str]:
    """How many faults the runs took well, of how many, and what the script printed."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment, check=False
    )
    found = re.search(r"(\d+) of (\d+) faults taken well", done.stdout)
    assert found, done.stdout + done.stderr
    return int(found[1]), int(found[2]), done.stdout


def test_a_tracking_server_that_fails_and_comes_back_costs_nothing() -> None:
    good, faults, printed = taken_well("--quick", "--only", "tracking")
    assert faults >= 1
    assert good == faults, printed


@pytest.mark.slow
def test_all_faults_are_taken_well() -> None:
    good, faults, printed = taken_well()
    assert good == faults, printed
