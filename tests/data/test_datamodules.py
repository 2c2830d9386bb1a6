from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.data import PreferenceDataModule, PromptDataModule, SFTDataModule
from rlhf_lightning.data.batches import IGNORED
from rlhf_lightning.data.rows import split_by_prompt
from rlhf_lightning.errors import UserError
from tests.data.conftest import assistant, build_tokenizer, user

EOS = 2


def learned(tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]], **options: Any) -> list[str]:
    """Return the label tokens of each row, in order."""
    data = SFTDataModule(tokenizer, rows, **options)
    data.setup()
    return [tokenizer.decode([t for t in row.labels if t != IGNORED]) for row in data._rows["train"]]


def prepared(data: SFTDataModule | PreferenceDataModule | PromptDataModule) -> list[Any]:
    data.setup()
    return data._rows["train"]


@pytest.mark.parametrize("pad_is_eos", [True, False])
def test_the_label_at_the_first_eos_is_learned(pad_is_eos: bool) -> None:
    data = SFTDataModule(
        build_tokenizer(pad_is_eos=pad_is_eos),
        [{"prompt": "a", "completion": "b c d"}, {"prompt": "a", "completion": "b"}],
    )
    data.setup()
    (batch,) = data.train_dataloader()
    for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):  # type: ignore
        first = ids.tolist().index(EOS)
        assert labels[first] == EOS
        assert mask[: first + 1].all()
        assert not mask[first + 1 :].any()
        assert (labels[first + 1 :] == IGNORED).all()


def test_pad_as_eos_changes_padding_only() -> None:
    rows = [{"prompt": "a b", "completion": "c"}, {"prompt": "a", "completion": "b c d"}]
    batches = []
    for pad_is_eos in (True, False):
        data = SFTDataModule(build_tokenizer(pad_is_eos=pad_is_eos), rows)
        data.setup()
        batches.append(next(iter(data.train_dataloader())))
    same, apart = batches
    for name in ("attention_mask", "labels"):
        assert torch.equal(getattr(same, name), getattr(apart, name)), name
    real = same.attention_mask == 1  # type: ignore[attr-defined]
    assert torch.equal(same.input_ids[real], apart.input_ids[real])  # type: ignore[attr-defined]
    assert same.denominator == apart.denominator


@pytest.mark.parametrize(
    ("row", "loss_on", "expected"),
    [
        ({"prompt": "a b", "completion": "c d"}, "completion", "c d <eos>"),
        ({"prompt": "a b", "completion": "c d"}, "all", "a b c d <eos>"),
        ({"text": "a b"}, "completion", "a b <eos>"),
        ({"prompt": "a", "text": "a b", "rating": 1}, "completion", "a b <eos>"),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, "completion", "b <eos>"),
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}, "completion", "d <eos>"),
        ({"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}, "assistant", "b <eos> d <eos>"),
        (
            {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
            "assistant",
            "b <eos> d <eos>",
        ),
        ({"messages": [user("a"), assistant("b")]}, "all", "user : a assistant : b <eos>"),
        ({"messages": [user("a")]}, "all", "user : a <eos>"),
    ],
)
def test_what_is_learned_of_a_row(
    marked_tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], loss_on: str, expected: str
) -> None:
    assert learned(marked_tokenizer, [row], loss_on=loss_on) == [expected]


def test_of_labelled_rows_the_true_ones_are_demonstrations(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    assert learned(tokenizer, rows) == ["b <eos>"]


def test_truncation_keeps_the_end_of_the_prompt_and_the_start_of_the_answer_and_is_counted(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"prompt": "a b c d e f", "completion": "u v w x y z"}, {"prompt": "a", "completion": "z"}]
    data = SFTDataModule(tokenizer, rows, max_length=6)
    with caplog.at_level(logging.WARNING):
        first, second = prepared(data)
    assert tokenizer.decode(first.input_ids) == "<bos> e f u v w"
    assert [label != IGNORED for label in first.labels] == [False] * 3 + [True] * 3
    assert tokenizer.decode(second.input_ids) == "<bos> a z <eos>"
    report = data.report["train"]
    assert (report.read, report.kept, report.truncated) == (2, 2, 1)
    assert "2 rows read, 2 kept, 1 truncated" in caplog.text


def test_the_mask_of_a_truncated_conversation_stays_with_its_tokens(marked_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"messages": [user("a"), assistant("b"), user("c d e f"), assistant("g h")]}]
    for max_length in range(4, 25):
        data = SFTDataModule(marked_tokenizer, rows, max_length=max_length, loss_on="assistant")
        (row,) = prepared(data)
        words = marked_tokenizer.convert_ids_to_tokens(row.input_ids)
        assert len(words) <= max_length
        marked = [word for word, label in zip(words, row.labels, strict=True) if label != IGNORED]
        assert set(marked) <= {"b", "g", "h", "<eos>"}
        assert "g" in marked
        assert all(label in (IGNORED, token) for label, token in zip(row.labels, row.input_ids, strict=True))


def test_rows_truncated_to_nothing_are_dropped_and_counted_and_none_left_is_an_error() -> None:
    tokenizer = build_tokenizer(bos=False)
    rows = [{"text": ""}, {"text": "a b"}]  # the first is an EOS with nothing before it
    data = SFTDataModule(tokenizer, rows)
    assert len(prepared(data)) == 1
    assert data.report["train"].dropped == {"nothing to learn": 1}
    with pytest.raises(UserError, match=r"0 kept.*1 dropped \(truncated to nothing\).*raise data\.max_length=1"):
        SFTDataModule(tokenizer, rows, max_length=1).setup()


def test_errors_name_the_file_and_the_row(tokenizer: PreTrainedTokenizerFast, write_jsonl: Callable[..., Path]) -> None:
    good = {"prompt": "a", "completion": "b"}
    path = write_jsonl([good, {"question": "a"}])
    with pytest.raises(UserError, match=r"rows\.jsonl, row 2: columns question: .*must be"):
        SFTDataModule(tokenizer, path).setup()
    with pytest.raises(
        UserError, match=r"row 2: columns chosen, rejected: not a format for supervised.*prompt \+ comp"
    ):
        SFTDataModule(tokenizer, [good, {"chosen": "a", "rejected": "b"}]).setup()
    with pytest.raises(UserError, match="row 1: columns completion, prompt: not a format for preferences"):
        PreferenceDataModule(tokenizer, [good]).setup()
    with pytest.raises(UserError, match="row 1: completion: expected a string, or a list of messages"):
        SFTDataModule(tokenizer, [{"prompt": "a", "completion": 4}]).setup()
    with pytest.raises(UserError, match=r"row 1: .*no chat template"):
        SFTDataModule(tokenizer, [{"messages": [user("a"), assistant("b")]}]).setup()
    with pytest.raises(UserError, match=r"row 1: data\.loss_on=assistant: the row holds plain strings"):
        SFTDataModule(tokenizer, [good], loss_on="assistant").setup()
    with pytest.raises(UserError, match="row 1: label: found 'yes'"):
        SFTDataModule(tokenizer, [{**good, "label": "yes"}]).setup()


def test_settings_out_of_range_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=r'data\.loss_on: found "answer"; must be completion \| all \| assistant'):
        SFTDataModule(tokenizer, "a.jsonl", loss_on="answer")
    with pytest.raises(UserError, match=r"data\.val_fraction: found 1\.0; must be a number in \[0, 1\)"):
        SFTDataModule(tokenizer, "a.jsonl", val_fraction=1.0)
    with pytest.raises(UserError, match=r"data\.val gives the held-out rows; set one of the two"):
        SFTDataModule(tokenizer, "a.jsonl", val="b.jsonl", val_fraction=0.1)


def test_preferences_of_every_format(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5},
        {"chosen": "a b", "rejected": "a c"},
        {"prompt": "a", "responses": ["b", "c", "d"]},
        {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [1, 2, 2]},
        {"prompt": "x", "completion": "b", "label": True},
        {"prompt": "x", "completion": "c", "label": False},
        {"prompt": "x", "completion": "d", "label": False},
        {"prompt": "y", "completion": "d", "label": False},
    ]
    data = PreferenceDataModule(tokenizer, rows)
    pair, implicit, ranked, tied, labelled = prepared(data)
    shown = [tokenizer.decode(ids) for ids in (pair.prompt_ids, *pair.answers)]
    assert shown == ["<bos> a", "b <eos>", "c <eos>"]
    assert (pair.pairs, pair.margin, pair.row_ids) == ([(0, 1)], 0.5, [0, 1])
    assert [tokenizer.decode(ids) for ids in (implicit.prompt_ids, *implicit.answers)] == shown
    assert implicit.row_ids == [3, 4]  # row * K + k, with K = 3 answers at most
    assert ranked.pairs == [(0, 1), (0, 2), (1, 2)]
    assert tied.pairs == [(0, 1), (0, 2)]
    assert labelled.pairs == [(0, 1), (0, 2)]
    ids = [i for row in data._rows["train"] for i in row.row_ids]
    assert len(set(ids)) == len(ids)
    assert data.report["train"].dropped == {"prompt without both a true and a false answer": 1}


def test_answers_have_ids_of_their_own_in_train_and_val(tokenizer: PreTrainedTokenizerFast) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    ranked = {"prompt": "a", "responses": ["b", "c", "d", "e"]}
    other = {"prompt": "x", "chosen": "b", "rejected": "c"}
    for data in (
        PreferenceDataModule(tokenizer, [pair, pair, pair], val=[ranked, pair]),
        PreferenceDataModule(tokenizer, [ranked, pair], val=[pair, pair, pair]),
        PreferenceDataModule(tokenizer, [pair, other, ranked], val_fraction=0.5, batch_size=2),
    ):
        data.setup()
        rows = data._rows["train"] + data._rows["val"]
        ids = [i for row in rows for i in row.row_ids]
        assert len(set(ids)) == len(ids)
        assert sorted(i for batch in data.reference_batches() for i in batch.row_ids.tolist()) == sorted(ids)


def test_conversational_preferences_share_the_prompt(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c d")]},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c d")]},
        {"prompt": [user("a")], "responses": [[assistant("b")], [assistant("c d")]]},
    ]
    found = [(row.prompt_ids, row.answers) for row in prepared(PreferenceDataModule(chat_tokenizer, rows))]
    assert found[0] == found[1] == found[2]
    assert chat_tokenizer.decode(found[0][0]) == "<bos> user : a assistant :"
    assert [chat_tokenizer.decode(ids) for ids in found[0][1]] == ["b <eos>", "c d <eos>"]


def test_answers_that_do_not_differ_are_dropped_and_counted(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "a", "chosen": "b c d e", "rejected": "b c d f"},
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        {"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
    ]
    data = PreferenceDataModule(tokenizer, rows, max_length=5)  # what differs in the first is cut off
    assert len(prepared(data)) == 1
    assert data.report["train"].dropped == {"no two answers differ": 2, "no two answers differ once truncated": 1}
    assert data.report["train"].truncated == 1


def test_a_longer_row_is_advised_only_where_the_length_is_the_reason(tokenizer: PreTrainedTokenizerFast) -> None:
    equal = [{"prompt": "a", "chosen": "b c", "rejected": "b c"}]
    with pytest.raises(
        UserError, match=r"1 dropped \(no two answers differ\); nothing is left to train on; check the rows$"
    ):
        PreferenceDataModule(tokenizer, equal).setup()
    with pytest.raises(UserError, match=r"nothing is left to train on; check the rows$"):
        SFTDataModule(tokenizer, [{"prompt": "a", "completion": "b", "label": False}]).setup()
    cut = [{"prompt": "a", "chosen": "b c d", "rejected": "b c e"}]
    with pytest.raises(UserError, match=r"differ once truncated\); .*; raise data\.max_length=4, or check the rows$"):
        PreferenceDataModule(tokenizer, cut, max_length=4).setup()


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "a", "completion": None}, "columns prompt (completion is null): not a format for supervised"),
        ({"completion": None}, "columns (none) (completion is null): unknown format"),
        ({"prompt": None, "completion": "b"}, "columns completion (prompt is null): unknown format"),
    ],
)
def test_a_null_column_is_named(row: dict[str, Any], found: str, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match=re.escape(found)):
        SFTDataModule(tokenizer, [row]).setup()


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"role": "assistant", "content": None}, "the content of a message is null"),
        ({"role": "assistant"}, "the content of a message is null"),
        ({"role": "assistant", "content": 3}, "the content of a message is int"),
        ({"content": "b"}, "the role of a message is null"),
    ],
)
def test_what_a_message_lacks_is_named(
    message: dict[str, Any], found: str, chat_tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match=f"row 1: messages: {found}; expected"):
        SFTDataModule(chat_tokenizer, [{"messages": [user("a"), message]}]).setup()


def test_null_columns_of_other_formats_change_nothing(tokenizer: PreTrainedTokenizerFast) -> None:
    row, nulls = {"prompt": "a b", "completion": "c"}, {"messages": None, "label": None, "chosen": None}
    assert prepared(SFTDataModule(tokenizer, [row | nulls])) == prepared(SFTDataModule(tokenizer, [row]))
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    (ours,) = prepared(PreferenceDataModule(tokenizer, [pair | {"completion": None, "margin": None}]))
    assert ours == prepared(PreferenceDataModule(tokenizer, [pair]))[0]
    data = PromptDataModule(tokenizer, [row | nulls | {"kind": None}])
    data.setup()
    assert data.train_prompts[0].columns == {"completion": "c"}


def test_bad_ranks_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(UserError, match="row 1: ranks: 1 for 2 responses"):
        PreferenceDataModule(tokenizer, [{"prompt": "a", "responses": ["b", "c"], "ranks": [1]}]).setup()
    with pytest.raises(UserError, match="row 1: responses: expected a list of at least 2"):
        PreferenceDataModule(tokenizer, [{"prompt": "a", "responses": ["b"]}]).setup()


def test_prompts_come_from_rows_of_any_format(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "a b", "answer": "72", "text": "a b c"},
        {"prompt": [user("a")], "completion": [assistant("b")]},
        {"messages": [user("a"), assistant("b")], "level": 3},
        {"chosen": "a b", "rejected": "a c"},
        {"prompt": "a", "responses": ["b", "c"]},
    ]
    plain, conversational, messages, implicit, ranked = prepared(PromptDataModule(chat_tokenizer, rows))
    assert (plain.text, chat_tokenizer.decode(plain.input_ids)) == ("a b", "<bos> a b")
    assert plain.columns == {"answer": "72", "text": "a b c"}
    assert conversational.text == "<bos>user : a\nassistant : "
    assert chat_tokenizer.decode(conversational.input_ids) == "<bos> user : a assistant :"
    assert conversational.columns == {"completion": [assistant("b")], "messages": [user("a")]}
    assert messages.text == conversational.text
    assert messages.columns == {"level": 3, "messages": [user("a")]}
    assert implicit.text == "a"
    assert ranked.columns == {}


def test_prompts_keep_their_end_and_empty_ones_are_dropped() -> None:
    data = PromptDataModule(build_tokenizer(bos=False), [{"prompt": "a b c"}, {"prompt": ""}], max_prompt_length=2)
    (row,) = prepared(data)
    assert data.tokenizer.decode(row.input_ids) == "b c"
    assert data.report["train"].truncated == 1
    assert data.report["train"].dropped == {"empty prompt": 1}
    for bad, message in (({"text": "a"}, "rename `text`"), ({"prompt": "a", "prompts": "b"}, "column prompts")):
        with pytest.raises(UserError, match=message):
            PromptDataModule(build_tokenizer(), [bad]).setup()


def test_the_training_batches_of_prompts_are_left_to_the_algorithm(tokenizer: PreTrainedTokenizerFast) -> None:
    data = PromptDataModule(tokenizer, [{"prompt": f"a {word}"} for word in "bcdefghij"], val_fraction=0.3)
    data.setup()
    assert len(data.train_prompts) == 6
    assert [row for batch in data.val_dataloader() for row in batch] == data.val_prompts
    assert not {row.text for row in data.train_prompts} & {row.text for row in data.val_prompts}

    class Attached:
        global_rank, world_size, limit_val_batches = 0, 1, 1.0
        lightning_module = SimpleNamespace(train_dataloader=lambda: "the algorithm's")

    data.trainer = Attached()  # type: ignore[assignment]
    assert data.train_dataloader() == "the algorithm's"


def test_val_prompts_are_shared_by_the_ranks_in_equally_many_batches(tokenizer: PreTrainedTokenizerFast) -> None:
    class Attached:
        world_size = 2

        def __init__(self, rank: int) -> None:
            self.global_rank = rank

    rows = [{"prompt": f"a {i}"} for i in range(200)]
    for count in (129, 128, 3):
        data = PromptDataModule(tokenizer, rows, val=rows[:count])
        data.setup()
        shares = []
        for rank in (0, 1):
            data.trainer = Attached(rank)  # type: ignore[assignment]
            shares.append(data.val_dataloader())
        assert len(shares[0]) == len(shares[1])
        assert all(batch for share in shares for batch in share)
        assert sorted(row.text for share in shares for batch in share for row in batch) == sorted(
            row["prompt"] for row in rows[:count]
        )


def test_every_held_out_prompt_comes_as_often_as_val_samples_says(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": f"a {word}"} for word in "bcde"]
    data = PromptDataModule(tokenizer, rows, val=rows[:3], val_samples=4)
    data.setup()
    assert Counter(row.text for batch in data.val_dataloader() for row in batch) == {"a b": 4, "a c": 4, "a d": 4}
    assert len(data.train_prompts) == 4


def test_fewer_val_prompts_than_processes_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    data = PromptDataModule(tokenizer, [{"prompt": "a b"}, {"prompt": "c d"}], val=[{"prompt": "e f"}])
    data.setup()
    data.trainer = SimpleNamespace(global_rank=1, world_size=2)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"^data\.val or data\.val_fraction: 1 held-out prompts for 2 processes"):
        data.val_dataloader()


def test_validation_rows_come_from_val_or_from_a_split_by_prompt(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Callable[..., Path]
) -> None:
    rows = [{"prompt": f"a {word}", "completion": "b"} for word in "bcdefghijk"]
    files = SFTDataModule(tokenizer, write_jsonl(rows), val=write_jsonl(rows[:2], "val.jsonl"), limit=5)
    files.setup()
    assert {name: report.kept for name, report in files.report.items()} == {"train": 5, "val": 2}
    split = SFTDataModule(tokenizer, rows, val_fraction=0.2)
    split.setup()
    assert {name: report.kept for name, report in split.report.items()} == {"train": 8, "val": 2}
    assert sum(len(batch) for batch in split.val_dataloader()) == 2
    without = SFTDataModule(tokenizer, rows)
    without.setup()
    assert list(without.val_dataloader()) == []


def test_setup_tokenises_once(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    data = SFTDataModule(tokenizer, [{"text": "a b"}])
    data.setup("fit")
    monkeypatch.setattr(SFTDataModule, "tokenize", None)
    data.setup("validate")
    assert len(data.train_dataloader()) == 1


def test_a_column_that_a_row_leaves_empty_does_not_count(
    tokenizer: PreTrainedTokenizerFast, write_jsonl: Callable[..., Path]
) -> None:
    """A columnar file fills missing values with None, in messages too."""
    path = write_jsonl([{"text": "a"}, {"prompt": "a", "completion": "b"}])
    assert learned(tokenizer, path) == ["a <eos>", "b <eos>"]  # type: ignore[arg-type]


def messages(*contents: str) -> list[dict[str, str]]:
    return [user(content) if turn % 2 == 0 else assistant(content) for turn, content in enumerate(contents)]


@pytest.mark.parametrize("prompt", [None, "a", [user("a")]])
def test_answers_that_are_whole_conversations_are_split(chat_tokenizer: PreTrainedTokenizerFast, prompt: Any) -> None:
    """TRL's `ultrafeedback_binarized`, which also has scores, and the older form with the prompt as separate text."""
    row = {"prompt": prompt, "chosen": messages("a", "b"), "rejected": messages("a", "c d"), "score_chosen": 1.5}
    (found,) = prepared(PreferenceDataModule(chat_tokenizer, [row]))
    assert chat_tokenizer.decode(found.prompt_ids) == "<bos> user : a assistant :"
    assert [chat_tokenizer.decode(ids) for ids in found.answers] == ["b <eos>", "c d <eos>"]
    (asked,) = prepared(PromptDataModule(chat_tokenizer, [row]))
    assert asked.text == "<bos>user : a\nassistant : "
    other = {"chosen": messages("x", "b"), "rejected": messages("x", "c")}
    train, held_out = split_by_prompt([row, other], 0.5, 0)
    assert sorted(train + held_out) == [0, 1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "z", "chosen": messages("a", "b"), "rejected": messages("a", "c")}, "prompt: it is text, and not"),
        (
            {"chosen": messages("a", "b", "c", "d"), "rejected": messages("a", "x", "c", "d")},
            "the conversations differ before the user's last message",
        ),
        ({"chosen": "a b", "rejected": messages("a", "b")}, "one is a string and the other messages"),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"},
            "margin: found 'much'; must be a finite number",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "margin: found nan"),
        ({"prompt": "a", "responses": ["b", "c"], "ranks": ["first", "2"]}, "ranks: found 'first'"),
        ({"prompt": "a", "responses": ["b", "c"], "ranks": [None, 2]}, "ranks: found None"),
        ({"prompt": "a", "responses": ["b", "c"], "ranks": "12"}, "ranks: '12' for 2 responses"),
        ({"prompt": "a", "completion": "b", "label": "good"}, "label: found 'good'; must be true or false"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label: found 2; must be true or false"),
    ],
)
def test_preferences_that_mean_nothing_are_refused(
    chat_tokenizer: PreTrainedTokenizerFast, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"row 1: .*{message}"):
        PreferenceDataModule(chat_tokenizer, [row]).setup()


def test_an_answer_that_both_conversations_share_is_not_left_open(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    row = {"chosen": messages("a", "b"), "rejected": messages("a", "b")}
    other = {"chosen": messages("a", "b"), "rejected": messages("a", "c")}
    data = PreferenceDataModule(chat_tokenizer, [row, other])
    assert len(prepared(data)) == 1
    assert data.report["train"].dropped == {"no two answers differ": 1}


def test_numbers_and_labels_may_be_written_as_text(tokenizer: PreTrainedTokenizerFast) -> None:
    ranked = {"prompt": "a", "responses": ["b", "c", "d"], "ranks": ["10", "2", "2.0"]}
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "0.5"}
    labelled = [
        {"prompt": "x", "completion": word, "label": label}
        for word, label in (("b", "true"), ("c", "False"), ("d", 0), ("e", 1.0))
    ]
    first, second, third = prepared(PreferenceDataModule(tokenizer, [ranked, pair, *labelled]))
    assert first.pairs == [(1, 0), (2, 0)]
    assert second.margin == 0.5
    assert third.pairs == [(0, 2), (0, 3), (1, 2), (1, 3)]
    assert learned(tokenizer, labelled) == ["b <eos>", "e <eos>"]


def test_labelled_answers_with_other_tools_are_not_of_one_prompt(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    chat_tokenizer.chat_template = "{{ tools }}" + chat_tokenizer.chat_template
    rows = [
        {"prompt": [user("a")], "completion": [assistant(said)], "label": good, "tools": [{"name": tool}]}
        for tool in ("x", "y")
        for said, good in (("b", True), ("c", False))
    ]
    assert len(prepared(PreferenceDataModule(chat_tokenizer, rows))) == 2


def test_a_truncated_prompt_is_shown_as_it_is_answered(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [{"prompt": "a b c d"}, {"prompt": [user("a b c d")]}]
    plain, chat = prepared(PromptDataModule(chat_tokenizer, rows, max_prompt_length=4))
    assert plain.text == "b c d"
    assert chat.text == "d assistant :"
