"""Hostile payloads stay quiet, and each fires once its protection is taken away: `scripts/canaries.py`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "canaries.py"


def run_canaries(*words: str) -> tuple[int, int, int, str]:
    """How many fired, of how many, how many controls did, and what the script printed."""
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=environment, check=False
    )
    found = re.search(r"(\d+) of (\d+) fired; the controls of (\d+) did", done.stdout)
    assert found, done.stdout + done.stderr
    assert done.returncode == int(found.groups() != ("0", found[2], found[2]))
    return int(found[1]), int(found[2]), int(found[3]), done.stdout


def test_a_few_canaries_are_quiet_and_could_fire() -> None:
    fired, canaries, controls, printed = run_canaries("--fast")
    assert canaries >= 8
    assert (fired, controls) == (0, canaries), printed


@pytest.mark.slow
def test_all_canaries_are_quiet_and_could_fire() -> None:
    fired, canaries, controls, printed = run_canaries()
    assert canaries >= 190
    assert (fired, controls) == (0, canaries), printed
