"""Solutions in steps: where each step ends, what is refused, and what truncation drops."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data import PromptDataModule, StepDataModule, tokenize_steps
from rlhf_lightning.data.batches import IGNORED
from rlhf_lightning.errors import UserError
from tests.subwords import subword_tokenizer
from tests.tiny import tiny_tokenizer

ROW = {"prompt": "a b", "completions": ["c d", "e", "f g h"], "labels": [True, False, True]}
OTHER = {"prompt": "i", "completions": ["j"], "labels": [False]}


def module(rows: list[dict[str, Any]], **kwargs: Any) -> StepDataModule:
    data = StepDataModule(tiny_tokenizer(words=[*"abcdefghijklmnopqrstuvwxyz", ";"]), rows, **kwargs)
    data.setup("fit")
    return data


def test_labels_are_at_the_last_token_of_each_step_and_nowhere_else() -> None:
    data = module([ROW, OTHER], step_separator=" ; ", batch_size=2)
    batch = next(iter(data.train_dataloader()))
    words = [data.tokenizer.convert_ids_to_tokens(row) for row in batch.input_ids.tolist()]
    order = [row[0] for row in words].index("a"), [row[0] for row in words].index("i")
    first, second = (batch.labels[i].tolist() for i in order)
    assert words[order[0]] == ["a", "b", "c", "d", ";", "e", ";", "f", "g", "h", ";"]
    assert first == [*[IGNORED] * 4, 1, IGNORED, 0, *[IGNORED] * 3, 1]
    assert second[:3] == [IGNORED, IGNORED, 0] and set(second[3:]) == {IGNORED}
    assert torch.equal(batch.ends, batch.labels != IGNORED)
    assert batch.denominator == 4.0
    assert batch.prompt_lengths.tolist() == [2, 1] if order == (0, 1) else [1, 2]


def test_a_separator_of_white_space_that_has_no_token_ends_a_step_at_its_last_word() -> None:
    (row,) = module([ROW, ROW]).train_rows[:1]
    assert row.ends == [1, 2, 5] and row.right == [1, 0, 1] and len(row.answer) == 6


def test_no_token_belongs_to_two_steps() -> None:
    """Subwords that join a separator with what follows it are not used across it."""
    tokenizer = subword_tokenizer("byte_level", bos=False)
    steps = ["one two", "three", "four five six"]
    for separator in ("\n", "\n\n", " . "):
        ((prompt, ids, ends),) = tokenize_steps(tokenizer, ["count: "], [steps], separator, [{}])
        starts = [0, *(end + 1 for end in ends)]
        pieces = [ids[start : end + 1] for start, end in zip(starts, ends, strict=False)]
        text = tokenizer.decode([*prompt, *ids], clean_up_tokenization_spaces=False)
        assert text.endswith("".join(step + separator for step in steps))
        for piece, step in zip(pieces, steps, strict=True):
            assert tokenizer.decode(piece, clean_up_tokenization_spaces=False) == step + separator
        assert ends[-1] == len(ids) - 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": [True]}, r"labels: 1 for 3 completions; expected a list with one for each step"),
        ({"labels": True}, r"labels: True for 3 completions"),
        ({"labels": [1, 0, 1]}, r"labels: label 1 is 1; must be true or false"),
        ({"labels": [True, False, "true"]}, r"labels: label 3 is 'true'; must be true or false"),
        ({"labels": [True, False, None]}, r"labels: label 3 is None; must be true or false"),
        ({"completions": [], "labels": []}, r"completions: expected a list of at least one step"),
        ({"completions": "c d"}, r"completions: expected a list of at least one step"),
        ({"completions": ["c", " ", "d"]}, r"completions: step 2 is empty; remove it together with its label"),
        ({"completions": ["c", 4, "d"]}, r"completions: step 2 is not text, but int"),
        ({"completions": ["c", "d\ne", "d"]}, r"completions: step 2 contains the separator '\\n'"),
        ({"completions": ["c", "d", "e\n"]}, r"completions: step 3 contains the separator '\\n'"),
        ({"labels": None}, r"columns completions, prompt \(labels is null\): not a format for labelled steps"),
        ({"prompt": 3}, r"prompt: "),
    ],
)
def test_a_bad_row_is_refused_with_its_file_and_number(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in (OTHER, {**ROW, **wrong})))
    data = StepDataModule(tiny_tokenizer(), str(file))
    with pytest.raises(UserError, match=rf"^{file}, row 2: {message}") as found:
        data.setup("fit")
    assert "\n" not in str(found.value)
    with pytest.raises(UserError, match=rf"^{file}, row 2: {message}"):
        StepDataModule(None, str(file)).rehearse()


def test_rows_of_another_format_are_refused() -> None:
    with pytest.raises(UserError, match=r"row 1: .*not a format for labelled steps; must be prompt \+ completions \+"):
        module([{"prompt": "a", "completion": "b", "label": True}])


def test_truncation_counts_the_steps_that_it_drops(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    data = module([ROW, OTHER], max_length=5)  # two tokens of prompt, and three of steps: the first two
    report = data.report["train"]
    assert (report.truncated, report.steps, report.steps_dropped, report.kept) == (1, 3, 1, 2)
    (row,) = [row for row in data.train_rows if len(row.ends) == 2]
    assert row.right == [1, 0] and len(row.answer) == 3
    assert "of 4 steps, 1 dropped (beyond the length limit)" in caplog.text


def test_a_step_that_is_cut_in_half_is_dropped_with_its_tokens() -> None:
    rows = module([ROW, OTHER], max_length=7).train_rows
    assert sorted(len(row.answer) for row in rows) == [1, 3]


def test_rows_without_a_whole_step_are_dropped_and_none_left_is_an_error() -> None:
    long = {"prompt": "a b c d", "completions": ["e f g h"], "labels": [True]}
    assert module([long, OTHER], max_length=4).report["train"].dropped == {"truncated to nothing": 1}
    with pytest.raises(UserError, match=r"nothing is left to train on; raise data\.max_length=4"):
        module([long, long], max_length=4)


def test_a_row_that_only_pads_a_process_has_its_steps_but_no_labels() -> None:
    (row,) = module([ROW, ROW]).train_rows[:1]
    assert row.weight == 3.0 and row.emptied().weight == 0.0 and row.emptied().ends == row.ends


def test_the_fingerprint_knows_labels_and_ends() -> None:
    found = {
        module([row, OTHER], step_separator=separator).fingerprint()
        for row, separator in (
            (ROW, " ; "),
            (ROW, "\n"),
            ({**ROW, "labels": [True, True, True]}, "\n"),
            ({**ROW, "completions": ["c", "d e", "f g h"]}, "\n"),
        )
    }
    assert len(found) == 4


def test_the_prompts_of_step_rows_can_be_answered_without_their_steps() -> None:
    data = PromptDataModule(tiny_tokenizer(), [ROW, OTHER])
    data.setup("fit")
    assert [row.text for row in data.train_prompts] == ["a b", "i"]
    assert all("completions" not in row.columns for row in data.train_prompts)
