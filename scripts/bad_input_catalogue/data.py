"""Rows and files of rows."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_catalogue.case import DPO, EVALUATE, PPO, REWARD, SFT, Case, changed, writes
from bad_input_catalogue.fixtures import flips, write_rows


def _rows(name: str, content: str | bytes, names: str, words: list[str] = SFT, fast: bool = False) -> Case:
    return Case(
        f"rows: {name}", "train", changed(words, "data.train=bad.jsonl"), names, writes("bad.jsonl", content), fast=fast
    )


def _row(name: str, row: Any, names: str, words: list[str] = SFT, fast: bool = False) -> Case:
    return _rows(name, f"{json.dumps(row)}\n", names, words, fast)


def _file(name: str, file: str, prepare: Callable[[Path], object], names: str, fast: bool = False) -> Case:
    return Case(f"file: {name}", "train", changed(SFT, f"data.train={file}"), names, prepare, fast=fast)


def _unreadable(folder: Path) -> None:
    """Make the name a link to itself, since root can read every file."""
    os.symlink("loop.jsonl", folder / "loop.jsonl")


def _parquet(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "how do i" * 50, "completion": f" you can {i}"} for i in range(500)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "bad.parquet")
    flips("bad.parquet", 0.97)(folder)


def _gzip(folder: Path) -> None:
    (folder / "bad.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99)[:40])


def _nowhere(folder: Path) -> None:
    (folder / "empty").mkdir()


def _many_labels(folder: Path) -> None:
    write_rows(folder / "bad.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])


def _columns_named_self(folder: Path) -> None:
    write_rows(folder / "bad.jsonl", [{"prompt": "how do i", "self": 1, "prompts": 2, "responses": 3}] * 4)


MESSAGES = [{"role": "user", "content": "how"}]
DATA = [
    _rows("not JSON", '{"prompt": "a", "completion": "b"}\nnope\n', r"bad\.jsonl.*2", fast=True),
    _rows("cut off", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "comp', r"bad\.jsonl.*2"),
    _rows("latin-1", '{"prompt": "caf\xe9", "completion": "b"}\n'.encode("latin-1"), r"bad\.jsonl"),
    _rows("empty", "", r"bad\.jsonl"),
    _rows("blank lines", "\n\n\n", r"bad\.jsonl"),
    _rows("a list", "[1, 2]\n", r"bad\.jsonl.*1"),
    _rows("a number", "1\n", r"bad\.jsonl.*1"),
    _rows("deep", f'{{"prompt": {"[" * 100_000}{"]" * 100_000}, "completion": "b"}}\n', r"bad\.jsonl"),
    _rows("a number of 5,000 digits", f'{{"prompt": "a", "completion": "b", "n": {"9" * 5000}}}\n', r"bad\.jsonl"),
    _rows("duplicate keys", '{"prompt": "a", "prompt": "b", "completion": "c"}\n', r"bad\.jsonl.*prompt"),
    _rows("NUL bytes", b"\x00\x00\x00\x00", r"bad\.jsonl"),
    _rows("UTF-16", '{"prompt": "a", "completion": "b"}\n'.encode("utf-16"), r"bad\.jsonl"),
    _row("no known columns", {"question": "a", "answer": "b"}, r"bad\.jsonl|prompt", fast=True),
    _row("a number as prompt", {"prompt": 1, "completion": "b"}, r"bad\.jsonl|prompt"),
    _row("null as completion", {"prompt": "a", "completion": None}, r"bad\.jsonl|completion"),
    _row("all completions empty", {"prompt": "a", "completion": ""}, r"bad\.jsonl|completion"),
    _row("every token unknown", {"prompt": "漢 字", "completion": " 漢 字"}, r"bad\.jsonl|unk|token"),
    _row("messages without a template", {"messages": [*MESSAGES, {"role": "assistant", "content": "b"}]}, r"template"),
    _row("a message without a role", {"messages": [{"content": "b"}]}, r"bad\.jsonl|role"),
    _row("messages as text", {"messages": "hello"}, r"bad\.jsonl|messages"),
    _row("pairs for SFT", {"prompt": "a", "chosen": "b", "rejected": "c"}, r"bad\.jsonl|completion|data"),
    _row("demonstrations for DPO", {"prompt": "a", "completion": "b"}, r"bad\.jsonl|chosen|data", DPO),
    _row("chosen is rejected", {"prompt": "a", "chosen": "b", "rejected": "b"}, r"bad\.jsonl|chosen", DPO),
    _row("no rejected", {"prompt": "a", "chosen": "b"}, r"bad\.jsonl|rejected", REWARD),
    _row("margin as text", {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"}, r"margin", REWARD),
    _row(
        "margin as NaN",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")},
        r"bad\.jsonl|margin",
        REWARD,
    ),
    _row("ranks null", {"prompt": "a", "responses": ["b", "c"], "ranks": [None, 1]}, r"ranks", REWARD),
    _row("ranks too few", {"prompt": "a", "responses": ["b", "c"], "ranks": [1]}, r"ranks", REWARD),
    _row("ranks as words", {"prompt": "a", "responses": ["b", "c"], "ranks": ["x", "y"]}, r"ranks", REWARD),
    _row("one response", {"prompt": "a", "responses": ["b"]}, r"bad\.jsonl|responses", REWARD),
    _row("an empty prompt for PPO", {"prompt": ""}, r"bad\.jsonl|prompt", PPO),
    _row("prompts without a prompt", {"text": 3}, r"bad\.jsonl|prompt", PPO),
    Case(
        "rows: columns that the reward's call takes",
        "train",
        changed(PPO, "data.train=bad.jsonl"),
        r"self|prompts|responses",
        _columns_named_self,
    ),
    Case(
        "rows: beyond the context",
        "train",
        changed(SFT, "data.train=bad.jsonl", "data.max_length=100000"),
        r"max_length|positions|128",
        writes("bad.jsonl", json.dumps({"prompt": "how " * 500, "completion": " you"})),
    ),
    Case(
        "rollout: beyond the context",
        "train",
        changed(PPO, "rollout.max_new_tokens=1000"),
        r"max_new_tokens|positions|128",
        fast=True,
    ),
    _file("missing", "nowhere.jsonl", lambda folder: None, r"data\.train: nowhere\.jsonl", fast=True),
    _file("of another kind", "bad.docx", writes("bad.docx", "x"), r"bad\.docx"),
    _file("an empty folder", "empty", _nowhere, r"empty"),
    _file("a link to itself", "loop.jsonl", _unreadable, r"loop\.jsonl"),
    _file("Parquet with a flipped byte", "bad.parquet", _parquet, r"bad\.parquet"),
    _file("Parquet that is text", "bad.parquet", writes("bad.parquet", "hello"), r"bad\.parquet"),
    _file("gzip that is cut", "bad.jsonl.gz", _gzip, r"bad\.jsonl\.gz"),
    _file("CSV without columns", "bad.csv", writes("bad.csv", "\n"), r"bad\.csv"),
    _file("CSV with a short row", "bad.csv", writes("bad.csv", "prompt,completion\na\n"), r"bad\.csv"),
    _file("JSON that is not a list", "bad.json", writes("bad.json", "3"), r"bad\.json"),
    Case("file: a split that does not exist", "train", changed(SFT, "data.train=rows.jsonl:nope"), r"rows\.jsonl"),
    Case(
        "file: validation rows missing", "train", changed(SFT, "data.val=nowhere.jsonl"), r"data\.val: nowhere\.jsonl"
    ),
    Case(
        "file: validation rows broken",
        "train",
        changed(SFT, "data.val=bad.jsonl"),
        r"bad\.jsonl.*1",
        writes("bad.jsonl", "nope\n"),
    ),
    Case(
        "evaluate: broken prompts",
        "evaluate",
        changed(EVALUATE, "prompts=bad.jsonl"),
        r"bad\.jsonl.*1",
        writes("bad.jsonl", "nope\n"),
    ),
    Case(
        "evaluate: prompts without a prompt",
        "evaluate",
        changed(EVALUATE, "prompts=bad.jsonl"),
        r"bad\.jsonl|prompt",
        writes("bad.jsonl", '{"a": 1}\n'),
    ),
    Case("ptx: no data", "train", [*PPO, "algorithm.ptx.coef=1"], r"algorithm\.ptx\.data"),
    Case(
        "ptx: data missing",
        "train",
        [*PPO, "algorithm.ptx.coef=1", "algorithm.ptx.data=nowhere.jsonl"],
        r"nowhere\.jsonl",
    ),
]
