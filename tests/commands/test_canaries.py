"""Hostile payloads stay quiet, and each fires once its protection is removed: `scripts/canaries.py`."""

from __future__ import annotations

import pytest

from tests.programs import counted

FIRED = r"(\d+) of (\d+) fired; the controls of (\d+) did"


def check_canaries(least: int, *words: str) -> None:
    (fired, canaries, controls), done = counted(FIRED, "canaries", *words)
    assert canaries >= least
    assert (fired, controls, done.returncode) == (0, canaries, 0), done.stdout


def test_a_few_canaries_are_quiet_and_could_fire() -> None:
    check_canaries(8, "--fast")


@pytest.mark.slow
def test_all_canaries_are_quiet_and_could_fire() -> None:
    check_canaries(190)
