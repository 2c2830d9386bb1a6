"""Faults of the machine and of a run's services lose no finished work: `scripts/faults.py`."""

from __future__ import annotations

import pytest

from tests.programs import counted

TAKEN = r"(\d+) of (\d+) faults taken well"


@pytest.mark.slow
def test_a_tracking_server_that_fails_and_comes_back_costs_nothing() -> None:
    (good, faults), done = counted(TAKEN, "faults", "--quick", "--only", "tracking")
    assert faults >= 1
    assert good == faults, done.stdout


@pytest.mark.slow
def test_all_faults_are_taken_well() -> None:
    (good, faults), done = counted(TAKEN, "faults")
    assert good == faults, done.stdout
