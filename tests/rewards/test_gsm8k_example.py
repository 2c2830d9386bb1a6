"""`examples/gsm8k`: rewards to copy, for the format of an answer and for its number."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.rewards import WeightedSum, make_reward

EXAMPLE = Path(__file__).parents[2] / "examples/gsm8k"


@pytest.fixture
def rewards(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("gsm8k_rewards")


@pytest.mark.parametrize(
    ("response", "number"),
    [
        ("48 / 2 = 24, 48 + 24 = 72.\n#### 72", 72.0),
        ("So it is\n\n#### $1,200.50.\n", 1200.5),
        ("A loss.\n####-3", -3.0),
        ("#### 72", None),  # no reasoning
        ("It is #### 72", None),  # not on a separate line
        ("It is\n#### 72\nand more", None),
        ("It is\n#### 72\n#### 72", None),
        ("It is\n#### 7 or 8", None),
        ("", None),
    ],
)
def test_only_reasoning_and_then_one_number_is_well_formed(rewards: Any, response: str, number: float | None) -> None:
    assert rewards.number_of(response) == number


def test_format_and_number_are_paid_apart_and_only_where_the_answer_ended(rewards: Any) -> None:
    parts = {
        "format": {"function": "gsm8k_rewards.well_formed", "weight": 0.5},
        "answer": {"function": "gsm8k_rewards.right", "weight": 1.0},
    }
    reward = make_reward(components=parts)  # type: ignore[arg-type]
    responses = ["3 + 4 = 7\n#### 7", "3 + 4 = 8\n#### 8", "It is 7.", "3 + 4 = 7\n#### 7"]
    assert reward(["q"] * 4, responses, ended=[True, True, True, False], answer=["7"] * 4) == [1.5, 0.5, 0.0, 0.0]
    assert isinstance(reward, WeightedSum) and reward.parts["answer"] == [1.0, 0.0, 0.0, 0.0]


def test_the_instruction_comes_first_and_long_questions_are_left_out(rewards: Any, tmp_path: Path) -> None:
    short, long = ({"prompt": [{"role": "user", "content": text}], "answer": "1"} for text in ("how many?", "x" * 141))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, (short, long))), encoding="utf-8")
    assert rewards.write_prompts(tmp_path / "rows.jsonl", tmp_path / "prompts.jsonl") == 1
    (row,) = map(json.loads, (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines())
    assert [message["role"] for message in row["prompt"]] == ["system", "user"] and row["answer"] == "1"
