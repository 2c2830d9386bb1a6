"""Odd files: rows, models, tokenizers, adapters and checkpoints that are not what their names say."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_input_catalogue.case import DPO, EVALUATE, PPO, REWARD, SFT, Case, becomes_folder, changed, writes
from bad_input_catalogue.fixtures import edit_json, flips, removes, truncates

WEIGHTS, CONFIG, TOKENIZER = "model/model.safetensors", "model/config.json", "model/tokenizer.json"
ROW = '{"prompt": "how do i", "completion": " you can"}\n'


def _model(name: str, prepare: Callable[[Path], object], names: str = r"model\.path|model\b") -> Case:
    return Case(f"odd model: {name}", "train", SFT, names, prepare)


def _config(name: str, **changes: Any) -> Case:
    return Case(f"odd model: config with {name}", "train", SFT, r"model", edit_json(CONFIG, **changes), further_lines=1)


def _adapter(name: str, prepare: Callable[[Path], object], names: str = r"adapter") -> Case:
    return Case(f"odd adapter: {name}", "train", changed(SFT, "model.path=adapter"), names, prepare)


def _rows(
    name: str, content: str | bytes, file: str = "bad.jsonl", words: list[str] = SFT, names: str = r"bad\."
) -> Case:
    return Case(f"odd rows: {name}", "train", changed(words, f"data.train={file}"), names, writes(file, content))


def _checkpoint(name: str, prepare: Callable[[Path], object]) -> Case:
    return Case(f"odd checkpoint: {name}", "train", [*SFT, "ckpt=bad.ckpt", "run_dir=new"], r"ckpt", prepare)


def _saved(content: Any) -> Callable[[Path], object]:
    def save(folder: Path) -> None:
        import torch

        torch.save(content, folder / "bad.ckpt")

    return save


def _index(folder: Path) -> None:
    """Write weights in shards, with an index that names a missing one."""
    (folder / WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bad.ckpt", "w") as archive:
        archive.writestr("hello", "text")


def _parquet(value: Any) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([value]), folder / "bad.parquet")

    return write


def _run_with(file: str, content: str) -> Callable[[Path], object]:
    """Return an action that copies the finished run with a broken file."""

    def write(folder: Path) -> None:
        shutil.copytree(folder / "run", folder / "bad")
        writes(f"bad/{file}", content)(folder)

    return write


def _broken_template(folder: Path) -> None:
    writes("model/chat_template.jinja", "{% for x in %}")(folder)
    messages = [{"role": "user", "content": "how"}, {"role": "assistant", "content": "you can"}]
    writes("rows.jsonl", json.dumps({"messages": messages}) + "\n")(folder)


PAIR = '{"prompt": "a", "chosen": " b", "rejected": " c"'
ODD_FILES = [
    _model("an index that names a missing shard", _index),
    _model("an index that is not JSON", lambda f: ((f / WEIGHTS).unlink(), writes(f"{WEIGHTS}.index.json", "{")(f))),
    _model("a flipped header", flips(WEIGHTS, 0.001)),
    _model("one byte of weights", truncates(WEIGHTS, 0.0001)),
    _model("weights of zeros", writes(WEIGHTS, b"\0" * 4096)),
    _model("weights that promise too much", writes(WEIGHTS, b"\xff" * 8 + b"{}")),
    _model("weights of a reward model", lambda f: shutil.copy(f / "adapter/adapter_model.safetensors", f / WEIGHTS)),
    _model("weights that are a dead link", lambda f: ((f / WEIGHTS).unlink(), os.symlink("nowhere", f / WEIGHTS))),
    _model("an empty tokenizer", writes(TOKENIZER, "")),
    _model("a tokenizer that is a list", writes(TOKENIZER, "[]")),
    _model("a tokenizer without a model", writes(TOKENIZER, "{}")),
    _model("a tokenizer that is a folder", becomes_folder(TOKENIZER)),
    _model("a tokenizer cut off", truncates(TOKENIZER)),
    _model("a tokenizer config that is a list", writes("model/tokenizer_config.json", "[]")),
    _model("a template with a syntax error", _broken_template, r"template"),
    _model("a config that is empty", writes(CONFIG, "")),
    _model("a config that is a number", writes(CONFIG, "3")),
    _model("a config in latin-1", writes(CONFIG, b'{"model_type": "caf\xe9"}')),
    _model("a config of NUL bytes", writes(CONFIG, b"\0" * 10)),
    _model("a config nested too deeply", writes(CONFIG, "[" * 100000)),
    _model("a config that is a folder", becomes_folder(CONFIG)),
    _model("a generation config that is a list", writes("model/generation_config.json", "[]")),
    _model(
        "a generation config of words",
        edit_json("model/generation_config.json", eos_token_id="end"),
        r"generation|eos|model",
    ),
    _config("no family", model_type=None),
    _config("a family that is a number", model_type=3),
    _config("a negative hidden size", hidden_size=-16),
    _config("a hidden size of 0", hidden_size=0),
    _config("a hidden size that is a word", hidden_size="sixteen"),
    _config("a hidden size that is null", hidden_size=None),
    _config("layers that are negative", num_hidden_layers=-1),
    _config("layers that are a fraction", num_hidden_layers=1.5),
    _config("more layers than there are", num_hidden_layers=3),
    _config("no heads", num_attention_heads=0),
    _config("an unknown activation", hidden_act="nope"),
    _config("a vocabulary of 0", vocab_size=0),
    _config("a vocabulary that is a word", vocab_size="many"),
    _config("a vocabulary beyond memory", vocab_size=10**12),
    _config("an unknown type", dtype="float3"),
    _config("rope that is a word", rope_parameters="nope"),
    _adapter("weights that are empty", writes("adapter/adapter_model.safetensors", "")),
    _adapter("weights of the model", lambda f: shutil.copy(f / WEIGHTS, f / "adapter/adapter_model.safetensors")),
    _adapter("a config that is a list", writes("adapter/adapter_config.json", "[]")),
    _adapter("a config that is empty", writes("adapter/adapter_config.json", "")),
    _adapter("a rank of 0", edit_json("adapter/adapter_config.json", r=0)),
    _adapter("a rank that is negative", edit_json("adapter/adapter_config.json", r=-2)),
    _adapter("a rank that is a word", edit_json("adapter/adapter_config.json", r="two")),
    _adapter("a rank that its weights do not have", edit_json("adapter/adapter_config.json", r=4)),
    _adapter("a base that is a number", edit_json("adapter/adapter_config.json", base_model_name_or_path=3)),
    _adapter("a base that is itself", edit_json("adapter/adapter_config.json", base_model_name_or_path="adapter")),
    _adapter("a kind that is missing", edit_json("adapter/adapter_config.json", peft_type=None)),
    _adapter("an unknown task", edit_json("adapter/adapter_config.json", task_type="NOPE"), r"adapter|task"),
    _adapter("no targets", edit_json("adapter/adapter_config.json", target_modules=None)),
    _adapter("a broken pattern of targets", edit_json("adapter/adapter_config.json", target_modules="(")),
    _adapter("a key of peft's that is not", edit_json("adapter/adapter_config.json", alpha_pattern=3)),
    _checkpoint("zero bytes", writes("bad.ckpt", b"\0" * 4096)),
    _checkpoint("one byte", writes("bad.ckpt", b"x")),
    _checkpoint("a zip of text", _zip),
    _checkpoint("a list of torch's", _saved([1])),
    _checkpoint("a number of torch's", _saved(3)),
    _checkpoint("weights alone", _saved({"state_dict": {}})),
    _checkpoint("an empty dict", _saved({})),
    _checkpoint(
        "parts that are null",
        _saved(
            dict.fromkeys(
                (
                    "state_dict",
                    "loops",
                    "optimizer_states",
                    "lr_schedulers",
                    "callbacks",
                    "epoch",
                    "global_step",
                    "pytorch-lightning_version",
                )
            )
        ),
    ),
    _checkpoint(
        "parts that are words",
        _saved({"state_dict": "a", "loops": "b", "optimizer_states": "c", "pytorch-lightning_version": "2.6.6"}),
    ),
    _checkpoint(
        "an invalid version",
        _saved({"state_dict": {}, "loops": {}, "optimizer_states": [], "pytorch-lightning_version": "nope"}),
    ),
    _checkpoint("a link to itself", lambda f: os.symlink("bad.ckpt", f / "bad.ckpt")),
    _checkpoint("rows", lambda f: shutil.copy(f / "rows.jsonl", f / "bad.ckpt")),
    _rows("gzip that is text", ROW, "bad.jsonl.gz"),
    _rows("gzip of gzip", gzip.compress(gzip.compress(ROW.encode())), "bad.jsonl.gz"),
    _rows("gzip with a flipped byte", gzip.compress(ROW.encode() * 50)[:-12] + b"\0" * 12, "bad.jsonl.gz"),
    _rows("10 MB on one line", '{"prompt": "' + "x" * 10_000_000),
    _rows("NaN as a row", "NaN\n"),
    _rows(
        "a lone surrogate", '{"prompt": "\\ud800", "completion": " \\ud800"}\n', names=r"bad\.|surrogate|prompt|token"
    ),
    _rows("null", "null\n"),
    _rows("an object of nothing", "{}\n"),
    _rows("two objects on a line", ROW.strip() + ROW),
    _rows("an array over several lines", "[\n" + ROW.strip() + "\n]\n"),
    _rows("a byte order mark in the middle", ROW + "\ufeff" + ROW),
    _rows("single quotes", "{'prompt': 'a', 'completion': 'b'}\n"),
    _rows("a comma at the end", '{"prompt": "a", "completion": "b",}\n'),
    _rows("a list as a completion", '{"prompt": "a", "completion": [1]}\n', names=r"bad\.|completion"),
    _rows("an object as a prompt", '{"prompt": {"a": 1}, "completion": "b"}\n', names=r"bad\.|prompt"),
    _rows("a truth as a completion", '{"prompt": "a", "completion": true}\n', names=r"bad\.|completion"),
    _rows("messages that are null", '{"messages": null}\n'),
    _rows("messages that are empty", '{"messages": []}\n', names=r"bad\.|messages"),
    _rows("a message that is a number", '{"messages": [1]}\n', names=r"bad\.|messages"),
    _rows("an invalid role", '{"messages": [{"role": 3, "content": "a"}]}\n', names=r"bad\.|role"),
    _rows(
        "a content that is a number",
        '{"messages": [{"role": "user", "content": 3}, {"role": "assistant", "content": "a"}]}\n',
        names=r"bad\.|content",
    ),
    _rows("a margin of infinity", f'{PAIR}, "margin": Infinity}}\n', words=REWARD, names=r"margin"),
    _rows("a margin that is a list", f'{PAIR}, "margin": [1]}}\n', words=REWARD, names=r"margin"),
    _rows("a margin with 400 digits", f'{PAIR}, "margin": 1{"0" * 400}}}\n', words=REWARD, names=r"margin"),
    _rows("a margin that is a truth", f'{PAIR}, "margin": true}}\n', words=REWARD, names=r"margin"),
    _rows(
        "responses that are numbers",
        '{"prompt": "a", "responses": [1, 2], "ranks": [1, 2]}\n',
        words=REWARD,
        names=r"responses|bad\.",
    ),
    _rows(
        "responses that are a text",
        '{"prompt": "a", "responses": "ab", "ranks": [1, 2]}\n',
        words=REWARD,
        names=r"responses|bad\.",
    ),
    _rows(
        "ranks that are all equal",
        '{"prompt": "a", "responses": ["b", "c"], "ranks": [1, 1]}\n',
        words=REWARD,
        names=r"ranks|bad\.",
    ),
    _rows(
        "ranks of NaN",
        '{"prompt": "a", "responses": ["b", "c"], "ranks": [NaN, 1]}\n',
        words=REWARD,
        names=r"ranks|bad\.",
    ),
    _rows(
        "a rejected that is null",
        '{"prompt": "a", "chosen": "b", "rejected": null}\n',
        words=DPO,
        names=r"rejected|bad\.",
    ),
    _rows("a prompt that is a list for PPO", '{"prompt": [1]}\n', words=PPO, names=r"prompt|bad\."),
    _rows("a prompt that is null for PPO", '{"prompt": null}\n', words=PPO, names=r"prompt|bad\."),
    _rows("a table with an open quote", 'prompt,completion\n"a,b\n', "bad.csv"),
    _rows("a table with a column twice", "prompt,prompt\na,b\n", "bad.csv"),
    _rows("a table with long rows", "prompt,completion\na,b,c\n", "bad.csv"),
    _rows("a table of NUL bytes", b"\0\0\0,\0\n", "bad.csv"),
    _rows("a table in latin-1", "prompt,completion\ncaf\xe9,b\n".encode("latin-1"), "bad.csv"),
    _rows("a table of a header", "prompt,completion\n", "bad.tsv"),
    _rows("JSON cut off", '[{"prompt": "a"', "bad.json"),
    _rows("JSON that is a text", '"hello"', "bad.json"),
    _rows("JSON of lists", "[[1], [2]]", "bad.json"),
    _rows("Parquet that is empty", "", "bad.parquet"),
    Case(
        "odd rows: Parquet of bytes",
        "train",
        changed(SFT, "data.train=bad.parquet"),
        r"bad\.|prompt|completion",
        _parquet({"prompt": b"\xff", "completion": b"\xfe"}),
    ),
    Case(
        "odd rows: Parquet of numbers",
        "train",
        changed(SFT, "data.train=bad.parquet"),
        r"bad\.|prompt",
        _parquet({"prompt": 1, "completion": 2}),
    ),
    Case(
        "odd rows: a pipe",
        "train",
        changed(SFT, "data.train=bad.jsonl"),
        r"bad\.jsonl",
        lambda f: os.mkfifo(f / "bad.jsonl"),
    ),
    Case(
        "odd rows: a folder named as a file",
        "train",
        changed(SFT, "data.train=bad.jsonl"),
        r"bad\.jsonl",
        lambda f: os.mkdir(f / "bad.jsonl"),
    ),
    Case("odd rows: no device", "train", changed(SFT, "data.train=/dev/null"), r"/dev/null"),
    Case("odd rows: a device without an end", "train", changed(SFT, "data.train=/dev/zero"), r"/dev/zero"),
    Case(
        "odd rows: a link to a device without an end",
        "train",
        changed(SFT, "data.train=bad.jsonl"),
        r"bad\.jsonl",
        lambda f: os.symlink("/dev/zero", f / "bad.jsonl"),
    ),
    Case(
        "odd rows: a saved dataset without its files",
        "train",
        changed(SFT, "data.train=set"),
        r"set\b",
        writes("set/state.json", "{}"),
    ),
    Case(
        "odd rows: a folder of splits that is not JSON",
        "train",
        changed(SFT, "data.train=set"),
        r"set\b",
        writes("set/dataset_dict.json", "{"),
    ),
    Case(
        "odd rows: of PPO in a folder of nothing",
        "train",
        changed(PPO, "data.train=set"),
        r"set\b",
        lambda f: os.mkdir(f / "set"),
    ),
    Case("odd model: chat with a broken tokenizer", "chat", ["model=model"], r"model", writes(TOKENIZER, "{")),
    Case("odd model: chat with a config that is a list", "chat", ["model=model"], r"model", writes(CONFIG, "[]")),
    Case("odd model: chat without weights", "chat", ["model=model"], r"model", removes(WEIGHTS)),
    Case(
        "odd model: chat with an adapter without a base",
        "chat",
        ["model=adapter"],
        r"adapter|base|model",
        edit_json("adapter/adapter_config.json", base_model_name_or_path=None),
    ),
    Case(
        "odd model: plan with a config that is a list",
        "plan",
        ["experiment=sft", "model.path=model"],
        r"model",
        writes(CONFIG, "[]"),
    ),
    Case(
        "odd model: plan with a negative size",
        "plan",
        ["experiment=sft", "model.path=model"],
        r"model",
        edit_json(CONFIG, hidden_size=-16),
    ),
    Case(
        "odd model: plan with a size that is a word",
        "plan",
        ["experiment=sft", "model.path=model"],
        r"model",
        edit_json(CONFIG, hidden_size="x"),
    ),
    Case(
        "odd model: plan of an adapter without a base",
        "plan",
        ["experiment=sft", "model.path=adapter"],
        r"adapter|base|model",
        edit_json("adapter/adapter_config.json", base_model_name_or_path=None),
    ),
    Case(
        "odd model: plan with heads that do not divide",
        "plan",
        ["experiment=sft", "model.path=model"],
        r"model",
        edit_json(CONFIG, num_attention_heads=3, num_key_value_heads=2, head_dim=None),
    ),
    Case(
        "odd run: export of cut weights",
        "export",
        ["run=bad", "to=out"],
        r"run|bad",
        lambda f: (shutil.copytree(f / "run", f / "bad"), truncates("bad/model/model.safetensors")(f)),
    ),
    Case(
        "odd run: export with a config that is not YAML",
        "export",
        ["run=bad", "to=out"],
        r"run|bad",
        _run_with("config.yaml", "a: ["),
    ),
    Case(
        "odd run: export with a config that is a list",
        "export",
        ["run=bad", "to=out"],
        r"run|bad",
        _run_with("config.yaml", "[1]"),
    ),
    Case(
        "odd run: export with a config of another tool",
        "export",
        ["run=bad", "to=out"],
        r"run|bad",
        _run_with("config.yaml", "a: 1"),
    ),
    Case(
        "odd run: export with a broken config of the model",
        "export",
        ["run=bad", "to=out"],
        r"run|bad",
        _run_with("model/config.json", "{"),
    ),
    Case(
        "odd run: export without a tokenizer",
        "export",
        ["run=bad", "to=out"],
        r"run|bad",
        lambda f: (
            shutil.copytree(f / "run", f / "bad"),
            removes("bad/model/tokenizer.json", "bad/model/tokenizer_config.json")(f),
        ),
    ),
    Case(
        "odd run: track with a config that is not YAML",
        "track",
        ["run=bad", "tracking_uri=sqlite:///m.db"],
        r"run|bad",
        _run_with("config.yaml", "a: ["),
    ),
    Case(
        "odd run: track with metrics that are text",
        "track",
        ["run=bad", "tracking_uri=sqlite:///m.db"],
        r"run|bad|metrics",
        _run_with("metrics.jsonl", "hello"),
    ),
    Case(
        "odd run: resume with a config that is not YAML",
        "train",
        [*SFT, "run_dir=bad", "ckpt=last"],
        r"bad|config|ckpt",
        _run_with("config.yaml", "a: ["),
    ),
    Case(
        "odd run: resume with a config that is a list",
        "train",
        [*SFT, "run_dir=bad", "ckpt=last"],
        r"bad|config|ckpt",
        _run_with("config.yaml", "[1]"),
    ),
    Case(
        "odd run: resume with a manifest that is text",
        "train",
        [*SFT, "run_dir=bad", "ckpt=last"],
        r"bad|config|ckpt",
        _run_with("checkpoints/last.ckpt.manifest.json", "x"),
        further_lines=9,
    ),
    Case("odd run: evaluate a broken tokenizer", "evaluate", EVALUATE, r"policies\.a|model", writes(TOKENIZER, "{")),
    Case("odd run: evaluate a config that is a list", "evaluate", EVALUATE, r"policies\.a|model", writes(CONFIG, "[]")),
]
