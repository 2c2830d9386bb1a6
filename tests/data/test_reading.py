from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from rlhf_lightning.data import read_rows
from rlhf_lightning.data.reading import read_records
from rlhf_lightning.errors import UserError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d", "source": "book"}]
FILLED = [{**ROWS[0], "source": None}, ROWS[1]]


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    datasets.Dataset.from_list(FILLED).to_parquet(str(tmp_path / "rows.parquet"))
    for path in (write_jsonl(ROWS), tmp_path / "rows.json", tmp_path / "rows.parquet"):
        assert read_rows(path).to_list() == FILLED, path
        assert read_rows(str(path), limit=1)["prompt"] == ["a"]


def test_a_json_file_may_hold_lines(write_jsonl: Callable[..., Path]) -> None:
    assert len(read_rows(write_jsonl(ROWS, "rows.json"))) == 2


def test_a_column_that_the_first_row_lacks_is_kept(write_jsonl: Callable[..., Path]) -> None:
    assert read_rows(write_jsonl(ROWS))[1]["source"] == "book"


def test_saved_datasets_are_read_by_split(tmp_path: Path) -> None:
    saved = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS[:1]), test=datasets.Dataset.from_list(ROWS[1:]))
    saved.save_to_disk(str(tmp_path / "both"))
    saved["train"].save_to_disk(str(tmp_path / "one"))
    assert read_rows(tmp_path / "both", split="test")[0]["prompt"] == "c"
    assert read_rows(f"{tmp_path / 'both'}:test")[0]["prompt"] == "c"
    assert read_rows(tmp_path / "one")[0]["prompt"] == "a"
    with pytest.raises(UserError, match=r"no split 'validation'; it has train, test"):
        read_rows(tmp_path / "both", split="validation")


def test_a_folder_of_files_is_read_by_split(tmp_path: Path, write_jsonl: Callable[..., Path]) -> None:
    write_jsonl(ROWS, "folder/train.jsonl")
    write_jsonl(ROWS[:1], "folder/data/test-00000-of-00001.jsonl")
    assert len(read_rows(tmp_path / "folder")) == 2
    assert len(read_rows(tmp_path / "folder", split="test")) == 1
    with pytest.raises(UserError, match=r"no file of split 'dev'.*found .*train.jsonl"):
        read_rows(tmp_path / "folder", split="dev")


def test_a_bad_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b"\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:3: not JSON .*\"b\""):
        read_rows(path)
    path.write_text('{"text": "a"}\n["b"]\n')
    with pytest.raises(UserError, match=r"bad\.jsonl:2: .*found list"):
        read_rows(path)
    array = tmp_path / "bad.json"
    array.write_text('[{"text": "a"},\n {"text": }]')
    with pytest.raises(UserError, match=r"bad\.json:2: not JSON"):
        read_rows(array)


def test_unreadable_sources_are_one_line_that_says_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("a,b")
    (tmp_path / "rows.parquet").write_text("not parquet")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    for name, expected in (
        ("rows.txt", r"expected a \.jsonl"),
        ("rows.parquet", "not a Parquet file"),
        ("empty.jsonl", "no rows found"),
        ("binary.jsonl", "not UTF-8"),
        ("absent.jsonl", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            read_rows(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_column_may_hold_several_types(write_jsonl: Callable[..., Path]) -> None:
    rows = [{"prompt": "a", "n": 1}, {"prompt": [{"role": "user", "content": "b"}], "n": ["x", None]}]
    path = write_jsonl(rows)
    assert read_records(path) == rows
    assert read_rows(path).to_list() == rows


def test_a_limit_below_one_is_refused(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"data\.limit=0"):
        read_rows(write_jsonl(ROWS), limit=0)


def test_a_hub_name_goes_to_the_hub_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def load_dataset(name: str, split: str) -> datasets.Dataset:
        seen.append((name, split, datasets.is_progress_bar_enabled()))
        if split == "absent":
            raise ValueError("Unknown split\nand more")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_rows("org/name")) == 2
    assert len(read_rows("org/name:train_prefs", limit=1)) == 1
    assert seen == [("org/name", "train", False), ("org/name", "train_prefs", False)]
    with pytest.raises(UserError, match=r"org/name: .* split 'absent' \(Unknown split\)"):
        read_rows("org/name", split="absent")
    assert datasets.is_progress_bar_enabled()


def test_reading_local_files_leaves_no_cache(
    tmp_path: Path, write_jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    datasets.Dataset.from_list(ROWS[:1]).to_parquet(str(tmp_path / "rows.parquet"))
    before = set(tmp_path.iterdir())
    read_rows(tmp_path / "rows.parquet")
    path = write_jsonl(ROWS)
    read_rows(path)
    assert set(tmp_path.iterdir()) - before <= {path}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_the_split_of_a_file_is_refused(name: str, write_jsonl: Callable[..., Path]) -> None:
    file = write_jsonl(ROWS, name)
    with pytest.raises(UserError, match=rf"^{file}:foo: {file} is a file, and a file has no splits"):
        read_records(f"{file}:foo")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_nested_beyond_pythons_stack_is_refused_in_our_words(name: str, tmp_path: Path) -> None:
    depth = 200_000
    line = '{"prompt": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / name).write_text(line if name.endswith("l") else f"[{line}]")
    with pytest.raises(UserError, match=rf"{name}.*: the JSON is nested too deeply; check the row") as error:
        read_records(tmp_path / name)
    assert "recursion" not in str(error.value)


def test_half_of_a_surrogate_pair_in_any_column_names_its_row(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"row 2: it holds half of a surrogate pair"):
        read_rows(write_jsonl([ROWS[0], {**ROWS[1], "source": ["\ud800"]}]))
