from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from rlhf_lightning.data.reading import read_records, read_rows
from rlhf_lightning.errors import UserError

CUT_SHORT = gzip.compress(b'{"prompt": "a"}\n' * 99, mtime=0)[:-20]  # the same bytes in every process
ROWS: list[dict[str, Any]] = [
    {"prompt": "a, b", "completion": 'c "d"\u2028e\u0085f', "n": 1, "extra": {"default": None}},
    {"prompt": "a", "completion": "b", "n": "two"},
]


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_come_back_as_they_were_written(tmp_path: Path, packed: bool, mark: bytes) -> None:
    """With line separators inside text, columns of mixed types, and None where it was written."""
    texts = [{"prompt": "a\nb", "completion": 'c, "d"'}, {"prompt": "e", "completion": "f\tg"}]
    files = {
        "rows.jsonl": (json_lines(ROWS), ROWS),
        "rows.json": (json.dumps(ROWS, indent=1).encode(), ROWS),
        "rows.csv": (table(texts), texts),
        "rows.tsv": (table(texts, "\t"), texts),
    }
    for name, (content, wanted) in files.items():
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(mark + content) if packed else mark + content)
        assert read_records(path) == wanted, path
        assert len(read_rows(path, limit=1)) == 1


def test_what_comes_after_the_limit_is_not_looked_at(tmp_path: Path) -> None:
    lines = tmp_path / "rows.jsonl"
    lines.write_bytes(json_lines(ROWS) + b'{"prompt": \xff\n')
    assert read_records(lines, limit=2) == ROWS
    with pytest.raises(UserError, match=r"rows\.jsonl:3: it is not UTF-8"):
        read_records(lines)
    cells = tmp_path / "rows.csv"
    cells.write_text("prompt,completion\na,b\nc\n")
    assert read_records(cells, limit=1) == [{"prompt": "a", "completion": "b"}]
    with pytest.raises(UserError, match=r"rows\.csv:3: 1 cells for 2 columns \(prompt, completion\)"):
        read_records(cells)


def test_cells_that_spell_out_messages_or_lists_are_read_as_such(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "it's"}]
    cells = [
        {"prompt": json.dumps(messages), "responses": '["a", "b"]', "ranks": "[10, 2]", "label": "1", "margin": ""},
        {"prompt": repr(messages), "responses": "['a', 'b']", "ranks": "[1, 2]", "label": "", "margin": "0.5"},
        {"prompt": "[1] of", "responses": '["[a]", "b"]', "ranks": "[1, 2]", "label": "", "margin": "1"},
    ]
    (tmp_path / "rows.csv").write_bytes(table(cells))
    first, second, third = read_records(tmp_path / "rows.csv")
    assert first == {"prompt": messages, "responses": ["a", "b"], "ranks": [10, 2], "label": "1"}
    assert second == {"prompt": messages, "responses": ["a", "b"], "ranks": [1, 2], "margin": "0.5"}
    assert (third["prompt"], third["responses"]) == ("[1] of", ["[a]", "b"])
    (tmp_path / "bad.csv").write_text("prompt,responses\na,b or c\n")
    with pytest.raises(UserError, match=r"bad\.csv:2: responses: expected a list, as JSON; found 'b or c'"):
        read_records(tmp_path / "bad.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"prompt": "a", "prompt": "b"}\n', r"a\.jsonl:1: an object has the key 'prompt' twice"),
        ("a.json", b'[{"prompt": "a", "prompt": "b"}]', r"a\.json: an object has the key 'prompt' twice"),
        ("a.csv", b"prompt,prompt\na,b\n", r"a\.csv:1: the column 'prompt' appears twice"),
        ("a.csv", b'prompt\n"a\n', r"a\.csv:\d: not a table"),
        ("a.jsonl.gz", b'{"prompt": "a"}', r"a\.jsonl\.gz: it is not a complete gzip file"),
        ("b.jsonl.gz", CUT_SHORT, r"b\.jsonl\.gz: it is not a complete gzip file"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl:1: "),
        ("a.jsonl", codecs.BOM_UTF16_LE + '{"a": 1}'.encode("utf-16-le"), r"a\.jsonl:1: it is not UTF-8"),
        ("a.txt", b"a", r"a\.txt: unknown kind of file"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_records(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_holds_files_of_any_kind_and_a_limit_covers_them_all(tmp_path: Path) -> None:
    (tmp_path / "train-0.jsonl").write_bytes(json_lines(ROWS))
    (tmp_path / "train-1.jsonl.gz").write_bytes(gzip.compress(json_lines(ROWS)))
    (tmp_path / "train-2.csv").write_bytes(table([{"prompt": "a", "other": "b"}]))
    (tmp_path / "test.tsv").write_bytes(table([{"prompt": "a"}], "\t"))
    assert read_records(tmp_path) == [*ROWS, *ROWS, {"prompt": "a", "other": "b"}]
    assert len(read_records(tmp_path, limit=3)) == 3
    assert read_records(tmp_path, "test") == [{"prompt": "a"}]


def test_a_hub_sets_configuration_comes_before_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def load_dataset(path: str, split: str, **options: str) -> datasets.Dataset:
        seen.append((path, options.get("name"), split))
        if path == "org/many" and not options:
            raise ValueError("Config name is missing.\nPlease pick one")
        return datasets.Dataset.from_list([{"prompt": "a"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    read_records("org/many:20_k.v-1:train_prefs")
    read_records("org/one:test")
    read_records("org/one")
    assert seen == [("org/many", "20_k.v-1", "train_prefs"), ("org/one", None, "test"), ("org/one", None, "train")]
    with pytest.raises(UserError, match=r"org/many: .*Config name is missing.*`:configuration:split`"):
        read_records("org/many:test")
