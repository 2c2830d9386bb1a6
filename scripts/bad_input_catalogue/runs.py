"""Run folders, checkpoints, trackers and disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from bad_input_catalogue.case import DPO, EVALUATE, PPO, SFT, Case, changed, nothing, writes
from bad_input_catalogue.fixtures import edit_json, truncates

LAST = "run/checkpoints/last.ckpt"
AGAIN = [*SFT, "run_dir=run"]
MLFLOW = [word for word in SFT if word != "logger=none"]


def _checkpoint(name: str, prepare: Callable[[Path], object], names: str = r"ckpt", fast: bool = False) -> Case:
    return Case(f"checkpoint: {name}", "train", [*SFT, "ckpt=bad.ckpt", "run_dir=new"], names, prepare, fast=fast)


def _copies(source: str) -> Callable[[Path], object]:
    return lambda folder: shutil.copy(folder / source, folder / "bad.ckpt")


def _another_stage(folder: Path) -> None:
    shutil.copy(folder / LAST, folder / "bad.ckpt")


def _hidden_size(folder: Path) -> None:
    from rlhf_lightning.simulation.tiny_models import build_model, build_tokenizer

    shutil.copy(folder / LAST, folder / "bad.ckpt")
    build_model(build_tokenizer(), hidden_size=32, layers=1).save_pretrained(folder / "model")


def _checkpoints(name: str, *words: str, names: str = r"callbacks\.checkpoint\.filename", fast: bool = False) -> Case:
    return Case(f"checkpoint name: {name}", "train", [*SFT, "run_dir=new", SAVES_ALL, *words], names, fast=fast)


def _place(name: str, *words: str, command: str = "train", prepare: Callable[[Path], object] = nothing) -> Case:
    base = {"train": SFT, "evaluate": EVALUATE}.get(command, [])
    return Case(f"run folder: {name}", command, changed(base, *words), r"run_dir", prepare)


SAVES_ALL = "callbacks.checkpoint.save_top_k=-1"
FILENAME = "callbacks.checkpoint.filename"

PLACES = [
    _checkpoints("leaves its folder", f"{FILENAME}=../../run/checkpoints/last", fast=True),
    _checkpoints("leaves its folder below", f"{FILENAME}=x/../../x"),
    _checkpoints("absolute", f"{FILENAME}=/tmp/x"),
    _checkpoints("a format that there is not", f"{FILENAME}='{{epoch:zz}}'"),
    _checkpoints("a brace that does not end", f"{FILENAME}='{{epoch'"),
    _checkpoints("a whole number of a metric", f"{FILENAME}='{{train/loss:d}}'"),
    _checkpoints("too long", f"{FILENAME}={'a' * 220}"),
    _checkpoints(
        "of a second callback",
        "+callbacks.more={_target_: lightning.pytorch.callbacks.ModelCheckpoint, filename: ../x}",
        names=r"callbacks\.more\.filename",
    ),
    _checkpoints("in another run", "+callbacks.checkpoint.dirpath=run/checkpoints", names=r"checkpoint\.dirpath"),
    _checkpoints("in a folder of another run", "+callbacks.checkpoint.dirpath=run/x", names=r"checkpoint\.dirpath"),
    _checkpoints(
        "metrics of another run", "+callbacks.metrics.path=run/metrics.jsonl", names=r"callbacks\.metrics\.path"
    ),
    _place("holds the base model", "run_dir=."),
    _place("is the base model", "run_dir=model"),
    _place("is another model", "run_dir=scorer"),
    _place("holds another model", "run_dir=.", "model.path=adapter"),
    _place("begins from itself", "run_dir=run", "model.path=run"),
    _place(
        "holds the base of an adapter",
        *("run_dir=run", "model.path=adapter"),
        prepare=edit_json("adapter/adapter_config.json", base_model_name_or_path="run/model"),
    ),
    _place("in another run's checkpoints", "run_dir=run/checkpoints"),
    _place("in another run's model", "run_dir=run/model/x"),
    _place("another program's", "run_dir=new", prepare=writes("new/config.yaml", "mine: 1\n")),
    _place("of a training run, by rlhf-evaluate", "run_dir=run", command="evaluate"),
    _place("of a training run, by rlhf-pipeline", "pipeline=demo", "logger=none", "run_dir=run", command="pipeline"),
    _place("of an evaluation", "run_dir=new", prepare=writes("new/config.yaml", "policies: {a: b}\nbaseline: a\n")),
]

RUNS = [
    *PLACES,
    _checkpoint("missing", lambda folder: None, r"ckpt.*bad\.ckpt", fast=True),
    _checkpoint("text", writes("bad.ckpt", "hello"), r"bad\.ckpt"),
    _checkpoint("empty", writes("bad.ckpt", ""), r"bad\.ckpt"),
    _checkpoint("safetensors", _copies("model/model.safetensors"), r"bad\.ckpt"),
    _checkpoint("an empty folder", lambda folder: os.mkdir(folder / "bad.ckpt"), r"bad\.ckpt"),
    Case(
        "checkpoint: cut off", "train", [*AGAIN, f"ckpt={LAST}", "trainer.max_epochs=2"], r"last\.ckpt", truncates(LAST)
    ),
    Case(
        "checkpoint: of another stage",
        "train",
        [*DPO, "ckpt=bad.ckpt", "run_dir=new"],
        r"ckpt",
        _another_stage,
        fast=True,
    ),
    Case("checkpoint: of SFT for PPO", "train", [*PPO, "ckpt=bad.ckpt", "run_dir=new"], r"ckpt", _another_stage),
    Case("checkpoint: of another size", "train", [*SFT, "ckpt=bad.ckpt", "run_dir=new"], r"ckpt", _hidden_size),
    Case("checkpoint: none in the folder", "train", [*SFT, "ckpt=last", "run_dir=new"], r"ckpt"),
    Case(
        "checkpoint: another learning-rate schedule",
        "train",
        [*changed(AGAIN, "scheduler=linear"), "ckpt=last"],
        r"scheduler",
        further_lines=9,
    ),
    Case(
        "checkpoint: other rows",
        "train",
        [*AGAIN, "ckpt=last", "trainer.max_epochs=2"],
        r"data",
        writes("rows.jsonl", '{"prompt": "what", "completion": " no"}\n' * 8),
        further_lines=3,
    ),
    Case("run folder: a file", "train", [*SFT, "run_dir=rows.jsonl"], r"run_dir|rows\.jsonl", fast=True),
    Case("run folder: below a file", "train", [*SFT, "run_dir=rows.jsonl/x"], r"run_dir|rows\.jsonl"),
    Case("run folder: cannot be written", "train", [*SFT, "run_dir=/proc/nope"], r"run_dir|/proc/nope"),
    Case(
        "run folder: a bad model in a finished run",
        "train",
        changed(AGAIN, "model.path=model"),
        r"model",
        truncates("model/model.safetensors"),
        fast=True,
    ),
    Case(
        "run folder: bad rows in a finished run",
        "train",
        AGAIN,
        r"rows\.jsonl",
        writes("rows.jsonl", "nope\n"),
        fast=True,
    ),
    Case(
        "run folder: a bad reward in a finished run",
        "train",
        changed(PPO, "reward.function=mine.nope", "run_dir=run"),
        r"nope",
    ),
    Case("run folder: a bad key in a finished run", "train", [*AGAIN, "seedd=1"], r"seedd"),
    Case(
        "run folder: a bad device in a finished run",
        "train",
        changed(AGAIN, "trainer.accelerator=gpu"),
        r"trainer\.accelerator",
    ),
    Case(
        "tracking: an address without a host",
        "train",
        [*MLFLOW, "logger.tracking_uri=http://:5000"],
        r"logger\.tracking_uri",
        fast=True,
    ),
    Case("tracking: an invalid port", "train", [*MLFLOW, "logger.tracking_uri=http://host:99999"], r"tracking_uri"),
    Case(
        "tracking: a database without its driver",
        "train",
        [*MLFLOW, "logger.tracking_uri=mysql+nodriver://host/db"],
        r"logger\.tracking_uri",
    ),
    Case("tracking: not an address", "train", [*MLFLOW, "logger.tracking_uri=gopher://x"], r"logger\.tracking_uri"),
    Case(
        "tracking: a database that is text",
        "train",
        [*MLFLOW, "logger.tracking_uri=sqlite:///rows.jsonl"],
        r"logger\.tracking_uri|rows\.jsonl",
    ),
    Case("tracking: a folder", "train", [*MLFLOW, "logger.tracking_uri=sqlite:///model"], r"logger\.tracking_uri"),
    Case("tracking: a registered model without MLflow", "train", [*SFT, "register=mine"], r"register"),
]
