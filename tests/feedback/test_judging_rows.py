"""Rows that a judge cannot compare or revise name their file and number."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.errors import UserError
from rlhf_lightning.feedback.judging_tasks import judge_rows, judged_lines, revise_rows
from rlhf_lightning.judging.comparing import Compared
from rlhf_lightning.judging.judge import Judge

ASK, SAY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


class Never:
    def compare(self, comparisons: Any) -> list[Compared | None]:
        return pytest.fail("it asked")

    def revise(self, *asked: Any) -> list[Any]:
        return pytest.fail("it asked")


class Silent(Judge):
    def __init__(self) -> None:
        super().__init__(None, ("be kind",))  # type: ignore[arg-type]

    def compare(self, comparisons: Any) -> list[Compared | None]:
        return [None] * len(comparisons)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": {"a": 1}}, "prompt: expected a string"),
        ({"prompt": [1]}, "prompt: expected a string"),
        ({"prompt": "\ud800"}, "prompt: .* half of a surrogate pair"),
        ({"chosen": 1}, "chosen: expected a string"),
        ({"chosen": ["a"]}, "chosen: expected a string"),
        ({"rejected": [SAY]}, "chosen and rejected: one is a string and the other messages"),
        ({"rejected": "a "}, "chosen and rejected: they are the same"),
        (
            {"prompt": [ASK], "chosen": [SAY, SAY], "rejected": [SAY]},
            "chosen: an answer must be a text, or one message",
        ),
        ({"chosen": None}, r"columns prompt, rejected \(chosen is null\): must be chosen"),
    ],
)
def test_a_row_that_is_no_comparison_is_refused_before_anything_is_asked(tmp_path, row, line) -> None:
    with pytest.raises(UserError, match=rf"^rows\.jsonl, row 2: {line}"):
        judge_rows([GOOD, GOOD | row], Never(), tmp_path, source="rows.jsonl")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"prompt": "p", "completion": 5}, "completion: expected a string"),
        ({"prompt": "p", "completion": {"a": 1}}, "completion: expected a string"),
        ({"prompt": "p", "completion": ["x"]}, "completion: expected a string"),
        ({"prompt": "p", "completion": " "}, "completion: the answer is empty"),
        ({"prompt": "p", "completion": "\ud800"}, "completion: .* half of a surrogate pair"),
        ({"prompt": 5, "completion": "c"}, "prompt: expected a string"),
        ({"prompt": "", "completion": "c"}, "columns .*: no prompt and completion"),
        ({"messages": ["a", "b"]}, "messages: expected a string"),
        ({"messages": [SAY, ASK]}, "messages: an answer must be a text, or one message of the assistant"),
        ({"messages": [ASK]}, "columns messages: no prompt and completion"),
        (GOOD, "columns .*: no prompt and completion"),
    ],
)
def test_a_row_that_cannot_be_revised_is_refused_before_anything_is_asked(tmp_path, row, line) -> None:
    rows = [{"messages": [ASK, SAY]}, row]
    with pytest.raises(UserError, match=rf"^rows\.jsonl, row 2: {line}"):
        revise_rows(rows, Never(), tmp_path, source="rows.jsonl")  # type: ignore[arg-type]


def test_a_judge_that_says_nothing_at_all_is_an_error(tmp_path) -> None:
    with pytest.raises(UserError, match=r"^judge\.model: no verdict on any of 1 rows"):
        judge_rows([GOOD], Silent(), tmp_path)
    assert list(tmp_path.iterdir()) == []


class Sure(Judge):
    def __init__(self) -> None:
        super().__init__(None, ("be kind",))  # type: ignore[arg-type]

    def compare(self, comparisons: Any) -> list[Compared | None]:
        return [Compared(0.7, 0.8, 0.6, "be kind") for _ in comparisons]


def test_one_row_has_no_interval_of_the_position(tmp_path) -> None:
    lines = judged_lines(judge_rows([GOOD], Sure(), tmp_path), "the labels")
    assert "position: the first answer gets 60.0% on average (50%: no bias)" in lines
    assert "nan" not in " ".join(lines)
    assert "gets 60.0% (17 to 92)" in " ".join(judged_lines(judge_rows([GOOD] * 3, Sure(), tmp_path), "the labels"))
