"""Bad input of every kind, given to every command, is answered in one line that names it: `scripts/bad_inputs.py`."""

from __future__ import annotations

import pytest

from tests.programs import counted

ANSWERED = r"(\d+) of (\d+) answered well"


def test_fast_bad_inputs_are_answered_well() -> None:
    (good, cases), done = counted(ANSWERED, "bad_inputs", "--fast")
    assert cases >= 30
    assert good == cases, done.stdout


@pytest.mark.slow
def test_all_bad_inputs_are_answered_well() -> None:
    (good, cases), done = counted(ANSWERED, "bad_inputs")
    assert cases >= 350
    assert good == cases, done.stdout
