"""The requirements of `scripts/feedback_load.py` on a real server, except for its speed."""

from __future__ import annotations

import pytest

from tests.programs import run_script


@pytest.mark.slow
@pytest.mark.parametrize("words", [("kills", "--kills", "3"), ("two",), ("locked",), ("full",)])
def test_nothing_that_was_acknowledged_is_lost(words: tuple[str, ...]) -> None:
    done = run_script("feedback_load", "--only", *words)
    assert done.returncode == 0, done.stdout + done.stderr
