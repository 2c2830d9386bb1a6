from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.data import row_format
from rlhf_lightning.data.rows import row_prompt, split_by_prompt, split_preference
from rlhf_lightning.errors import UserError
from tests.data.conftest import assistant, user


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"text": "a"}, "text"),
        ({"prompt": "a", "text": "a b", "human_rating": 1.0}, "text"),
        ({"messages": [user("a")]}, "messages"),
        ({"prompt": "a", "difficulty": 3}, "prompt"),
        ({"prompt": "a", "completion": "b", "answer": "b"}, "prompt_completion"),
        ({"prompt": "a", "completion": "b", "label": False}, "labelled"),
        ({"prompt": "a", "completion": "b", "label": None}, "prompt_completion"),
        ({"chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}, "preference"),
        ({"prompt": "a", "responses": ["b", "c"]}, "ranked"),
    ],
)
def test_the_format_of_a_row(row: dict[str, Any], expected: str) -> None:
    assert row_format(row) == expected


def test_unknown_columns_are_listed_with_what_is_allowed() -> None:
    with pytest.raises(
        UserError, match=r"columns answer, question \(text is null\): .*must be chosen \+ rejected \| .*text"
    ) as caught:
        row_format({"question": "a", "answer": "b", "text": None})
    assert "prompt + completion + label" in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("a b c", "a b d", "a b"),
        ("The sky is blue", "The sky is black", "The sky is"),  # not inside a word
        ("Q: a\nA: yes", "Q: a\nA: no", "Q: a\nA:"),
        ("a b", "a b c", "a"),  # an answer is never empty
        ("yes", "no", ""),
    ],
)
def test_the_implicit_prompt_is_the_common_start_in_whole_words(chosen: str, rejected: str, prompt: str) -> None:
    found, better, worse = split_preference({"chosen": chosen, "rejected": rejected})
    assert found == prompt
    assert (found + better, found + worse) == (chosen, rejected)
    assert better
    assert worse


def test_the_implicit_prompt_of_conversations_is_the_common_messages() -> None:
    row = {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}
    assert split_preference(row) == ([user("a")], [assistant("b")], [assistant("c")])


def test_an_explicit_prompt_is_left_alone() -> None:
    assert split_preference({"prompt": "a", "chosen": "b c", "rejected": "b d"}) == ("a", "b c", "b d")


def test_the_prompt_of_messages_is_what_precedes_the_last_answer() -> None:
    messages = [user("a"), assistant("b"), user("c"), assistant("d")]
    assert row_prompt({"messages": messages}) == messages[:3]


def test_no_prompt_is_on_both_sides_of_a_split() -> None:
    rows = [{"prompt": f"p{i % 10}", "completion": str(i)} for i in range(40)]
    train, val = split_by_prompt(rows, 0.3, seed=1)
    assert sorted(train + val) == list(range(40))
    assert len(val) == 12  # 3 prompts of 4 rows
    assert not {rows[i]["prompt"] for i in train} & {rows[i]["prompt"] for i in val}
    assert (train, val) == split_by_prompt(rows, 0.3, seed=1)
    assert val != split_by_prompt(rows, 0.3, seed=2)[1]


def test_a_split_keeps_a_prompt_on_each_side() -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    assert [len(side) for side in split_by_prompt(rows, 0.01, seed=0)] == [1, 1]
    assert [len(side) for side in split_by_prompt(rows, 0.99, seed=0)] == [1, 1]
    with pytest.raises(UserError, match="cannot split 1 prompt"):
        split_by_prompt(rows[:1], 0.5, seed=0)
