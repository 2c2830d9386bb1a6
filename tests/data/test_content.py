"""Rows with nothing to learn are refused, for every algorithm's data."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.data import (
    PreferenceDataModule,
    PromptDataModule,
    RewardedDataModule,
    SFTDataModule,
    StepDataModule,
    UnpairedDataModule,
)
from rlhf_lightning.errors import UserError
from tests.tiny import tiny_tokenizer


def set_up(kind: type[Any], *rows: dict[str, Any]) -> Any:
    module = kind(tiny_tokenizer(), list(rows))
    module.setup()
    return module


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (SFTDataModule, {"prompt": "漢", "completion": " 字"}),
        (SFTDataModule, {"text": "漢 字"}),
        (PreferenceDataModule, {"prompt": "漢", "chosen": " 字", "rejected": " 字 字"}),
        (PromptDataModule, {"prompt": "漢 字"}),
    ],
)
def test_rows_of_unknown_tokens_alone_are_refused(kind: type[Any], row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="every token of its rows is <unk>"):
        set_up(kind, row, row)


def test_mostly_unknown_tokens_are_said_and_few_are_not(caplog: pytest.LogCaptureFixture) -> None:
    set_up(PromptDataModule, {"prompt": "a b c 漢"})
    assert not caplog.records
    set_up(PromptDataModule, {"prompt": "a 漢 漢 漢"})
    assert "75% of the tokens are <unk>" in caplog.text


@pytest.mark.parametrize("answer", ["", " ", " \n "])
def test_demonstrations_whose_answers_are_all_empty_are_refused(answer: str) -> None:
    with pytest.raises(UserError, match=r"every answer .* is empty"):
        set_up(SFTDataModule, {"prompt": "a", "completion": answer}, {"prompt": "b", "completion": answer})


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (UnpairedDataModule, {"prompt": "a", "completion": "", "label": True}),
        (RewardedDataModule, {"prompt": "a", "completion": "", "reward": 1.0}),
        (StepDataModule, {"prompt": "a", "completions": [" "], "labels": [True]}),
    ],
)
def test_answers_that_are_all_empty_are_refused_for_every_kind_of_rows(kind: type[Any], row: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"every answer .* is empty|completions: "):
        set_up(kind, row, {**row, "prompt": "b"})


def test_one_answer_among_empty_ones_is_enough() -> None:
    module = set_up(SFTDataModule, {"prompt": "a", "completion": ""}, {"prompt": "b", "completion": " c"})
    assert len(module.train_rows) == 2


@pytest.mark.parametrize(
    ("kind", "row", "other", "what"),
    [
        (PromptDataModule, {"prompt": "a b"}, {"prompt": "b"}, "prompt"),
        (SFTDataModule, {"prompt": "a", "completion": " b"}, {"prompt": "a", "completion": " c"}, "answer"),
        (
            RewardedDataModule,
            {"prompt": "a", "completion": " b", "reward": 1.0},
            {"prompt": "a", "completion": " c", "reward": 1.0},
            "answer",
        ),
    ],
)
def test_rows_that_are_all_the_same_are_said(
    kind: type[Any], row: dict[str, Any], other: dict[str, Any], what: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_up(kind, row, other, row)
    assert not caplog.records
    set_up(kind, row, row)
    assert f"all 2 rows have the same {what}" in caplog.text


def test_a_batch_far_larger_than_the_data_is_said(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a", "completion": " b"}, {"prompt": "a", "completion": " c"}]
    for size, said in ((20, False), (21, True)):
        module = SFTDataModule(tiny_tokenizer(), rows, batch_size=size)
        module.setup()
        module.train_dataloader()
        assert ("data.batch_size: found" in caplog.text) == said
