"""Attempts of a hostile user beyond the other lists: odd files in every place, broken weights, absurd numbers."""

from __future__ import annotations

import datetime
import decimal
import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_catalogue.case import EVALUATE, PPO, REWARD, SFT, Case, changed, writes
from bad_input_catalogue.fixtures import edit_json, edit_weights


def link(target: str, name: str) -> Callable[[Path], object]:
    """Return an action that replaces a file with a symbolic link."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.symlink(target, folder / name)

    return make


def fifo(name: str) -> Callable[[Path], object]:
    """Return an action that replaces a file with a pipe that nobody writes to."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def sock(name: str) -> Callable[[Path], object]:
    """Return an action that creates a socket."""

    def make(folder: Path) -> None:
        os.chdir(folder)
        socket.socket(socket.AF_UNIX).bind(name)

    return make


def pq(columns: Callable[[Any], dict[str, Any]]) -> Callable[[Path], object]:
    """Return an action that writes rows.parquet."""

    def write(folder: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table(columns(pyarrow)), folder / "rows.parquet")

    return write


def with_header(header: bytes) -> bytes:
    """Return a safetensors file of a header and 16 bytes."""
    return len(header).to_bytes(8, "little") + header + bytes(16)


P = changed(SFT, "data.train=rows.parquet")
OVERLAP = (
    b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
)
ATTACKS = [
    Case("attack: model target dict", "train", [*SFT, "model._target_=builtins.dict"], r"model\._target_"),
    Case("attack: model target str", "train", [*SFT, "model._target_=builtins.str"], r"model"),
    Case("attack: rows fifo", "train", changed(SFT, "data.train=p.jsonl"), r"p\.jsonl", fifo("p.jsonl")),
    Case(
        "attack: rows zero",
        "train",
        changed(SFT, "data.train=z.jsonl"),
        r"z\.jsonl|data\.train",
        link("/dev/zero", "z.jsonl"),
    ),
    Case(
        "attack: rows full",
        "train",
        changed(SFT, "data.train=z.jsonl"),
        r"z\.jsonl|data\.train",
        link("/dev/full", "z.jsonl"),
    ),
    Case("attack: rows socket", "train", changed(SFT, "data.train=s.jsonl"), r"s\.jsonl", sock("s.jsonl")),
    Case("attack: rows loop", "train", changed(SFT, "data.train=l.jsonl"), r"l\.jsonl", link("l.jsonl", "l.jsonl")),
    Case("attack: model config fifo", "train", SFT, r"config\.json|model\.path", fifo("model/config.json")),
    Case("attack: weights fifo", "train", SFT, r"model\.safetensors|model\.path", fifo("model/model.safetensors")),
    Case("attack: tokenizer fifo", "train", SFT, r"tokenizer|model\.path", fifo("model/tokenizer.json")),
    Case("attack: config dev zero", "train", SFT, r"config\.json|model\.path", link("/dev/zero", "model/config.json")),
    Case(
        "attack: gz not gz", "train", changed(SFT, "data.train=r.jsonl.gz"), r"r\.jsonl\.gz", writes("r.jsonl.gz", "{}")
    ),
    Case(
        "attack: gz cut",
        "train",
        changed(SFT, "data.train=r.jsonl.gz"),
        r"r\.jsonl\.gz",
        writes("r.jsonl.gz", gzip.compress(b'{"prompt":"a","completion":" b"}\n' * 1000)[:40]),
    ),
    Case(
        "attack: zst",
        "train",
        changed(SFT, "data.train=r.jsonl.zst"),
        r"r\.jsonl\.zst",
        writes("r.jsonl.zst", b"\x28\xb5\x2f\xfd"),
    ),
    Case(
        "attack: utf16",
        "train",
        SFT,
        r"rows\.jsonl",
        writes("rows.jsonl", '{"prompt":"a","completion":"b"}\n'.encode("utf-16")),
    ),
    Case(
        "attack: huge int",
        "train",
        SFT,
        r"rows\.jsonl",
        writes("rows.jsonl", '{"prompt": %s, "completion":"b"}\n' % ("1" * 5000)),
    ),
    Case(
        "attack: NaN margin",
        "train",
        REWARD,
        r"pairs\.jsonl",
        writes("pairs.jsonl", '{"prompt":"a","chosen":" you","rejected":" no","margin":NaN}\n'),
    ),
    Case(
        "attack: huge margin",
        "train",
        REWARD,
        r"pairs\.jsonl",
        writes("pairs.jsonl", '{"prompt":"a","chosen":" you","rejected":" no","margin":1e400}\n'),
    ),
    Case(
        "attack: big margin",
        "train",
        REWARD,
        r"pairs\.jsonl|margin",
        writes("pairs.jsonl", '{"prompt":"how","chosen":" you","rejected":" no","margin":1e300}\n'),
    ),
    Case(
        "attack: nested",
        "train",
        SFT,
        r"rows\.jsonl",
        writes("rows.jsonl", '{"prompt":' + "[" * 100000 + "]" * 100000 + "}\n"),
    ),
    Case(
        "attack: parquet nested",
        "train",
        P,
        r"rows\.parquet",
        pq(lambda _: {"prompt": [{"a": 1}], "completion": ["b"]}),
    ),
    Case(
        "attack: parquet decimal",
        "train",
        P,
        r"rows\.parquet",
        pq(lambda _: {"prompt": [decimal.Decimal("1.5")], "completion": ["b"]}),
    ),
    Case(
        "attack: parquet time",
        "train",
        P,
        r"rows\.parquet",
        pq(lambda _: {"prompt": [datetime.datetime(2020, 1, 1)], "completion": ["b"]}),
    ),
    Case(
        "attack: parquet bytes", "train", P, r"rows\.parquet", pq(lambda _: {"prompt": [b"\xff"], "completion": ["b"]})
    ),
    Case("attack: parquet none", "train", P, r"rows\.parquet", pq(lambda _: {"x": [1]})),
    Case(
        "attack: csv ragged",
        "train",
        changed(SFT, "data.train=r.csv"),
        r"r\.csv",
        writes("r.csv", "prompt,completion\na,b,c\n"),
    ),
    Case(
        "attack: csv dup header",
        "train",
        changed(SFT, "data.train=r.csv"),
        r"r\.csv",
        writes("r.csv", "prompt,prompt\na,b\n"),
    ),
    Case(
        "attack: csv quote",
        "train",
        changed(SFT, "data.train=r.csv"),
        r"r\.csv",
        writes("r.csv", 'prompt,completion\n"a,b\n'),
    ),
    Case(
        "attack: overlap st",
        "train",
        SFT,
        r"model\.path|safetensors",
        writes("model/model.safetensors", with_header(OVERLAP)),
    ),
    Case(
        "attack: huge header",
        "train",
        SFT,
        r"model\.path|safetensors",
        writes("model/model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    ),
    Case(
        "attack: extra tensors",
        "train",
        SFT,
        r"model\.path|safetensors",
        edit_weights("model/model.safetensors", lambda w: dict(list(w.items())[1:])),
    ),
    Case(
        "attack: int weights",
        "train",
        SFT,
        r"model\.path|safetensors|dtype|weights",
        edit_weights("model/model.safetensors", lambda w: {k: v.int() for k, v in w.items()}),
    ),
    Case(
        "attack: nan weights",
        "train",
        SFT,
        r"model\.path|weights|nan|loss",
        edit_weights("model/model.safetensors", lambda w: {k: v * float("nan") for k, v in w.items()}),
    ),
    Case(
        "attack: tok no model",
        "train",
        SFT,
        r"tokenizer|model\.path",
        writes("model/tokenizer.json", '{"version":"1.0"}'),
    ),
    Case("attack: tok list", "train", SFT, r"tokenizer|model\.path", writes("model/tokenizer.json", "[]")),
    Case(
        "attack: genconf", "train", SFT, r"generation_config|model\.path", writes("model/generation_config.json", "[1")
    ),
    Case(
        "attack: genconf list",
        "train",
        SFT,
        r"generation_config|model\.path",
        writes("model/generation_config.json", "[1]"),
    ),
    Case("attack: config list", "train", SFT, r"config\.json|model\.path", writes("model/config.json", "[1]")),
    Case("attack: config neg", "train", SFT, r"config|model\.path", edit_json("model/config.json", hidden_size=-4)),
    Case(
        "attack: config zero heads",
        "train",
        SFT,
        r"config|model\.path",
        edit_json("model/config.json", num_attention_heads=0),
    ),
    Case(
        "attack: config text hidden",
        "train",
        SFT,
        r"config|model\.path",
        edit_json("model/config.json", hidden_size="big"),
    ),
    Case(
        "attack: config huge",
        "train",
        SFT,
        r"config|model\.path|memory",
        edit_json("model/config.json", hidden_size=10**12),
    ),
    Case(
        "attack: adapter base",
        "train",
        changed(SFT, "model.path=adapter", "+model/adapter=lora"),
        r"adapter|model\.path",
        edit_json("adapter/adapter_config.json", base_model_name_or_path="nowhere/x"),
    ),
    Case(
        "attack: adapter rank",
        "train",
        changed(SFT, "model.path=adapter"),
        r"adapter|model\.path",
        edit_json("adapter/adapter_config.json", r=7),
    ),
    Case(
        "attack: adapter targets",
        "train",
        changed(SFT, "model.path=adapter"),
        r"adapter|model\.path",
        edit_json("adapter/adapter_config.json", target_modules=["zzz"]),
    ),
    Case(
        "attack: adapter r text",
        "train",
        changed(SFT, "model.path=adapter"),
        r"adapter|model\.path",
        edit_json("adapter/adapter_config.json", r="x"),
    ),
    Case(
        "attack: ckpt lora",
        "train",
        [*SFT, "model/adapter=lora", "model.adapter.rank=2", "ckpt=run/checkpoints/last.ckpt", "run_dir=new"],
        r"model\.adapter",
        further_lines=2,
    ),
    Case("attack: sweep bad", "train", ["-m", *SFT, "seed=1,x"], r"seed"),
    Case("attack: group", "train", [*SFT, "nogroup/x=y"], r"nogroup"),
    Case("attack: group option", "train", [*SFT, "optimizer=zzz"], r"optimizer"),
    Case(
        "attack: dup keys",
        "train",
        ["--config-dir", "conf", "experiment=mine", *SFT[1:]],
        r"mine",
        writes("conf/experiment/mine.yaml", "# @package _global_\nseed: 1\nseed: 2\n"),
    ),
    Case(
        "attack: tabs",
        "train",
        ["--config-dir", "conf", "experiment=mine"],
        r"mine",
        writes("conf/experiment/mine.yaml", "# @package _global_\na:\n\tb: 1\n"),
    ),
    Case("attack: eval policies fifo", "evaluate", changed(EVALUATE, "prompts=p.jsonl"), r"p\.jsonl", fifo("p.jsonl")),
    Case(
        "attack: eval huge score",
        "evaluate",
        [*EVALUATE, "gold.function=own.fn"],
        r"gold\.function",
        writes("own.py", "def fn(prompts,responses,**c): return [1e39]*len(responses)\n"),
    ),
    Case(
        "attack: ppo 1e39",
        "train",
        changed(PPO, "reward.function=own.fn"),
        r"reward\.function.*prompts\.jsonl, row",
        writes("own.py", "def fn(prompts,responses,**c): return [1e39]*len(responses)\n"),
    ),
    Case(
        "attack: ppo 1e30",
        "train",
        changed(PPO, "reward.function=own.fn"),
        r"reward\.function",
        writes("own.py", "def fn(prompts,responses,**c): return [1e30]*len(responses)\n"),
        further_lines=1,
    ),
    Case("attack: lr 1e12", "train", changed(SFT, "optimizer.lr=1e12"), r"blown up|loss|optimizer\.lr"),
    Case("attack: lr 30", "train", [*changed(SFT, "optimizer.lr=300"), "trainer.max_steps=1"], r"blown up"),
    Case("attack: wd 1e12", "train", [*SFT, "optimizer.weight_decay=1e12"], r"blown up|loss|weight_decay"),
    Case("attack: devices []", "train", changed(SFT, "trainer.devices=[]"), r"trainer\.devices"),
    Case("attack: export fifo", "export", ["run=run", "to=p"], r"\bto\b", fifo("p")),
    Case("attack: chat model dev", "chat", ["model=/dev/zero"], r"model"),
    Case(
        "attack: surrogate",
        "train",
        SFT,
        r"rows\.jsonl",
        writes("rows.jsonl", '{"prompt":"\\ud800","completion":" b"}\n'),
    ),
    Case("attack: NUL", "train", changed(SFT, "data.train=a\0b.jsonl"), r"data\.train"),
    Case("attack: model NUL", "train", changed(SFT, "model.path=a\0b"), r"model\.path"),
    Case("attack: plan 0", "plan", ["experiment=sft", "model.path=model", "data.max_length=0"], r"data\.max_length"),
    Case("attack: pipeline stage null", "pipeline", ["pipeline=demo", "stages.sft=null"], r"stages\.sft"),
    Case("attack: pipeline stages list", "pipeline", ["pipeline=demo", "stages=[1]"], r"stages"),
    Case(
        "attack: early monitor",
        "train",
        [*SFT, "+callbacks.e={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: x}"],
        r"callbacks\.e\.monitor",
    ),
    Case("attack: vci 0", "train", [*SFT, "trainer.val_check_interval=0"], r"val_check_interval"),
    Case("attack: ckpt dev zero", "train", [*SFT, "ckpt=z.ckpt", "run_dir=new"], r"ckpt", link("/dev/zero", "z.ckpt")),
    Case(
        "attack: mine fifo module", "train", changed(PPO, "reward.function=own.fn"), r"reward\.function", fifo("own.py")
    ),
]
