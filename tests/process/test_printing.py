"""A reader of a command's output may stop reading."""

from __future__ import annotations

import io

import pytest

from rlhf_lightning.process.printing import Terminal


class Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_who_has_gone_is_left_to_the_command() -> None:
    with pytest.raises(BrokenPipeError):
        Terminal(file=Closed()).print("a table")
