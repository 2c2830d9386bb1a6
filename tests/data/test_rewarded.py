"""Answers with rewards: where a reward goes, what is read, and what is refused with file and row."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data import RewardedDataModule, SFTDataModule, row_format
from rlhf_lightning.errors import UserError
from tests.tiny import tiny_tokenizer

ROWS: list[dict[str, Any]] = [
    {"prompt": "a b", "completion": "c d e", "reward": 2},
    {"prompt": "f", "completion": "g", "reward": [0.5, -1.5]},
    {"prompt": "h", "completion": "i j", "reward": -3.25, "label": True},
]


def module(train: Any, **settings: Any) -> RewardedDataModule:
    data = RewardedDataModule(tiny_tokenizer(), train, **{"batch_size": 3, **settings})
    data.setup("fit")
    return data


def test_a_reward_of_the_whole_answer_is_at_its_last_token_and_others_at_theirs() -> None:
    data = module(ROWS)
    assert [row.rewards for row in data.train_rows] == [[0.0, 0.0, 0.0, 2.0], [0.5, -1.5], [0.0, 0.0, -3.25]]
    batch = next(iter(data.train_dataloader()))
    assert batch.rewards.shape == batch.input_ids.shape == batch.completion_mask.shape
    assert batch.denominator == 9
    assert not batch.rewards[batch.completion_mask == 0].any()
    ends = batch.completion_mask.cumsum(1).eq(batch.completion_mask.sum(1, keepdim=True)) & batch.completion_mask.bool()
    assert sorted(batch.rewards[ends].tolist()) == [-3.25, -1.5, 2.0]
    assert set(batch.input_ids[ends].tolist()) == {1}


def test_a_truncated_answer_keeps_its_reward() -> None:
    data = module(ROWS, max_length=4)
    first = data.train_rows[0]
    assert len(first.prompt_ids) + len(first.answer) == 4
    assert first.rewards[-1] == 2.0
    assert data.report["train"].truncated == 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_files_of_every_kind_give_the_same_rows(kind: str, tmp_path: Path) -> None:
    file, rows = tmp_path / f"rows.{kind}", ROWS if kind != "parquet" else [ROWS[0], ROWS[2]]
    if kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        with file.open("w", newline="") as opened:
            table = csv.DictWriter(opened, ["prompt", "completion", "reward", "label"])
            table.writeheader()
            table.writerows({**row, "reward": json.dumps(row["reward"])} for row in rows)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert module(str(file)).train_rows == module(rows).train_rows


def test_a_rank_without_a_row_gets_one_that_counts_for_nothing() -> None:
    row = module(ROWS).train_rows[0].emptied()
    assert row.weight == 0
    assert row.answer


def test_the_rewards_are_part_of_the_fingerprint() -> None:
    other = [{**ROWS[0], "reward": 2.5}, *ROWS[1:]]
    assert module(ROWS).fingerprint() != module(other).fingerprint()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"reward": "good"}, "row 2: reward: found 'good'; must be a finite number"),
        ({"reward": float("nan")}, "row 2: reward: found nan"),
        ({"reward": True}, "row 2: reward: found True"),
        ({"reward": []}, "row 2: reward: found an empty list"),
        ({"reward": [1.0, "x"]}, "row 2: reward: found 'x'"),
        ({"reward": [1.0, 2.0, 3.0]}, "row 2: reward: found 3 numbers for 2 tokens"),
        ({"reward": None}, r"row 2: columns completion, prompt \(reward is null\)"),
        ({"reward": None, "label": True}, "row 2: reward: missing beside labelled columns"),
    ],
)
def test_bad_rows_are_refused_by_file_and_row(row: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [ROWS[0], {"prompt": "f", "completion": "g", **row}]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(UserError, match=f"rows.jsonl, {message}"):
        module(str(file))


def test_other_kinds_read_rewarded_rows_as_before() -> None:
    assert row_format(ROWS[0]) == "rewarded"
    assert row_format(ROWS[2]) == "labelled"
    data = SFTDataModule(tiny_tokenizer(), ROWS[:2])
    data.setup("fit")
    assert len(data.train_rows) == 2


def test_the_rewards_may_be_in_another_column() -> None:
    rows = [{"prompt": "a", "completion": "b", "gold": 1.5, "reward": 9}, {"prompt": "a", "completion": "c", "gold": 2}]
    assert [row.rewards[-1] for row in module(rows, reward_column="gold").train_rows] == [1.5, 2.0]
    with pytest.raises(
        UserError, match=r"data.train, row 1: data.reward_column: no 'score' in columns completion, gold"
    ):
        module(rows, reward_column="score")


def test_messages_are_rendered_as_for_other_answers(chat_tokenizer: Any) -> None:
    plain = [{"role": "user", "content": "a"}]
    rows = [{"prompt": plain, "completion": [{"role": "assistant", "content": "b"}], "reward": 1}]
    data = RewardedDataModule(chat_tokenizer, rows)
    data.setup("fit")
    (row,) = data.train_rows
    assert row.rewards == [*[0.0] * (len(row.answer) - 1), 1.0]
    assert torch.tensor(row.rewards).sum() == 1
