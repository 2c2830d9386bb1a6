"""Keys, values, groups and config files."""

from __future__ import annotations

import os
from pathlib import Path

from bad_input_catalogue.case import DPO, EVALUATE, PPO, SFT, Case, changed, writes

EXPORT, CHAT = ["run=run", "to=out"], ["model=model"]
PIPELINE = ["pipeline=demo", "logger=none"]


def _config(name: str, content: str | bytes, names: str, fast: bool = False) -> Case:
    words = ["--config-dir", "conf", "experiment=mine"]
    return Case(f"config file: {name}", "train", words, names, writes("conf/experiment/mine.yaml", content), fast=fast)


def _unreadable(folder: Path) -> None:
    writes("conf/experiment/mine.yaml", "seed: 1")(folder)
    (folder / "conf/experiment/mine.yaml").unlink()
    os.mkdir(folder / "conf/experiment/mine.yaml")


def _value(word: str, words: list[str] = SFT, fast: bool = False) -> Case:
    key = word.partition("=")[0].lstrip("+")
    return Case(f"value: {word}", "train", changed(words, word), rf"{key}\b", fast=fast)


CONFIGS = [
    _config("broken YAML", "a: [1\nb: }", r"mine\.yaml, line 2", fast=True),
    _config("latin-1", "name: café".encode("latin-1"), r"mine\.yaml: it is not UTF-8"),
    _config("tab", "a:\n\tb: 1", r"mine\.yaml, line 2"),
    _config("duplicate key", "# @package _global_\nseed: 1\nseed: 2", r"mine\.yaml|seed"),
    _config("a list", "- 1\n- 2", r"mine|list|experiment"),
    _config("NUL bytes", b"a: \x00b", r"mine\.yaml|config"),
    _config("a python tag", "a: !!python/object/apply:os.system [echo]", r"mine\.yaml, line 1"),
    _config("unknown default", "# @package _global_\ndefaults:\n  - override /algorithm: nope", r"algorithm"),
    _config("interpolation to nowhere", "# @package _global_\nname: ${nowhere.at.all}", r"name|nowhere"),
    _config(
        "unset environment", "# @package _global_\nname: ${oc.env:RLHF_NOT_SET_ANYWHERE}", r"RLHF_NOT_SET_ANYWHERE"
    ),
    Case("config file: a folder", "train", ["--config-dir", "conf", "experiment=mine"], r"mine", _unreadable),
    Case("config folder: missing", "train", ["--config-dir", "nowhere", *SFT], r"--config-dir: nowhere"),
    Case("config folder: a file", "train", ["--config-dir", "rows.jsonl", *SFT], r"--config-dir: rows\.jsonl"),
    Case("word: no equals sign", "train", [*SFT, "seed"], r"seed"),
    Case("word: a dash", "train", [*SFT, "--seed", "1"], r"seed", fast=True),
    Case("word: unbalanced", "train", [*SFT, "seed=[1"], r"seed"),
    Case("key: a typo", "train", [*SFT, "optimizer.lrr=1"], r"optimizer\.lrr.*optimizer\.lr\?"),
    Case("key: another library's", "train", [*SFT, "learning_rate=1"], r"learning_rate.*optimizer\.lr"),
    Case("option: a typo", "train", ["experiment=sftt"], r"experiment=sftt"),
    Case("name: escapes the outputs", "train", changed(SFT, "name=../../x"), r"name"),
    Case("name: absolute", "train", changed(SFT, "name=/tmp/x"), r"name"),
    Case("name: of a pipeline escapes", "pipeline", [*PIPELINE, "name=../x"], r"name"),
    Case("export: no such form", "export", [*EXPORT, "form=gguf"], r"form"),
    Case("export: no such dtype", "export", [*EXPORT, "dtype=int4"], r"dtype"),
    Case("export: no run", "export", ["run=nowhere", "to=out"], r"run: nowhere", fast=True),
    Case("export: not a run", "export", ["run=model", "to=out"], r"run: model"),
    Case("export: over the run", "export", ["run=run", "to=run", "overwrite=true"], r"to: run"),
    Case("export: over the base", "export", ["run=run", "to=model", "overwrite=true"], r"to: model", fast=True),
    Case("export: over somebody's folder", "export", ["run=run", "to=scorer", "overwrite=true"], r"to: scorer"),
    Case("export: to a file", "export", ["run=run", "to=rows.jsonl"], r"to: rows\.jsonl"),
    Case("export: adapter of a whole model", "export", [*EXPORT, "form=adapter"], r"form"),
    Case("chat: no model", "chat", ["model=nowhere/x"], r"model: .*nowhere/x"),
    Case("chat: a reward model", "chat", ["model=scorer"], r"model: scorer.*reward model", fast=True),
    Case("chat: a system message without a template", "chat", [*CHAT, "system=be nice"], r"system"),
    Case("chat: negative temperature", "chat", [*CHAT, "temperature=-1"], r"temperature"),
    Case("evaluate: baseline that does not exist", "evaluate", changed(EVALUATE, "baseline=c"), r"baseline"),
    Case("evaluate: no policies", "evaluate", changed(EVALUATE, "policies={}"), r"policies"),
    Case("evaluate: no prompts", "evaluate", changed(EVALUATE, "prompts=nowhere.jsonl"), r"prompts: nowhere"),
    Case(
        "evaluate: a reward model as policy",
        "evaluate",
        changed(EVALUATE, "policies={a: model, b: scorer}"),
        r"policies\.b|scorer",
    ),
    Case(
        "evaluate: gold module missing", "evaluate", [*EVALUATE, "gold.function=nowhere.fn"], r"gold\.function|nowhere"
    ),
    Case("evaluate: gold function missing", "evaluate", [*EVALUATE, "gold.function=mine.nope"], r"nope"),
    Case(
        "evaluate: two sources of gold",
        "evaluate",
        [*EVALUATE, "gold.function=mine.score", "gold.model=scorer"],
        r"gold",
    ),
    Case("plan: device_gb", "plan", ["experiment=sft", "model.path=model", "device_gb=none"], r"device_gb"),
    Case("plan: no model", "plan", ["experiment=sft", "model.path=nowhere/x"], r"model\.path"),
    Case("pipeline: none", "pipeline", ["logger=none"], r"pipeline"),
    Case("pipeline: no such stage", "pipeline", [*PIPELINE, "stages.ppoo.seed=1"], r"stages\.ppoo"),
    Case("pipeline: no such first stage", "pipeline", [*PIPELINE, "from=nope"], r"from"),
    Case("pipeline: a stage that has not ended", "pipeline", [*PIPELINE, "from=ppo", "run_dir=p"], r"from"),
    Case(
        "pipeline: typo in a stage",
        "pipeline",
        [*PIPELINE, "stages.ppo.algorithm.kl.targte=1"],
        r"stages\.ppo\.algorithm\.kl\.targte",
    ),
    Case("pipeline: gold module missing", "pipeline", [*PIPELINE, "evaluation.gold=nowhere.fn"], r"evaluation\.gold"),
    Case("pipeline: gold function missing", "pipeline", [*PIPELINE, "evaluation.gold=mine.nope"], r"evaluation\.gold"),
    Case(
        "pipeline: prompts missing", "pipeline", [*PIPELINE, "evaluation.prompts=nowhere.jsonl"], r"evaluation\.prompts"
    ),
    Case(
        "pipeline: reward module missing",
        "pipeline",
        [*PIPELINE, "stages.ppo.reward.model=null", "stages.ppo.reward.function=nowhere.fn"],
        r"reward",
    ),
    _value("optimizer.lr=fast", fast=True),
    _value("optimizer.lr=-1"),
    _value("optimizer.lr=.nan"),
    _value("optimizer.lr=.inf"),
    _value("data.batch_size=0"),
    _value("data.batch_size=1.5"),
    _value("data.val_fraction=2"),
    _value("trainer.max_epochs=0"),
    _value("trainer.max_epochs=two"),
    _value("trainer.accelerator=abacus"),
    _value("trainer.strategy=zeal"),
    _value("trainer.precision=7-bit"),
    _value("trainer.devices=-3"),
    _value("trainer.accelerator=gpu"),
    _value("seed=-1"),
    _value("model.dtype=int3"),
    _value("model.attn_implementation=telepathy"),
    _value("algorithm.loss_type=dpo", DPO),
    _value("algorithm.beta=0", DPO),
    _value("algorithm.label_smoothing=0.6", DPO),
    _value("algorithm.clip_range=-0.1", PPO),
    _value("algorithm.gamma=1.1", PPO),
    _value("algorithm.kl.kind=k3", PPO),
    _value("algorithm.kl.target=-6", PPO),
    _value("rollout.temperature=0", PPO),
    _value("rollout.max_new_tokens=0", PPO),
    _value("rollout.batch_size=3.5", PPO),
    Case(
        "value: minibatches that do not divide",
        "train",
        changed(PPO, "algorithm.num_minibatches=3"),
        r"num_minibatches|rollout\.batch_size",
    ),
    Case(
        "value: an unknown monitor",
        "train",
        [*SFT, "callbacks.checkpoint.monitor=val/nope", "callbacks.checkpoint.save_top_k=1"],
        r"callbacks\.checkpoint\.monitor|val/nope",
    ),
    Case(
        "value: a class that does not exist",
        "train",
        [*SFT, "algorithm._target_=mine.Nope"],
        r"algorithm\._target_|Nope",
    ),
    Case(
        "value: a built-in class with a typo",
        "train",
        [*SFT, "algorithm._target_=rlhf_lightning.algorithms.SFTModul"],
        r"SFTModul",
    ),
    Case("value: a target that is not a class", "train", [*SFT, "algorithm._target_=mine.NUMBER"], r"algorithm"),
    Case("section: PPO without a reward", "train", changed(PPO, "reward.function=null"), r"reward"),
    Case("section: DPO on prompts", "train", [*changed(DPO), "data=prompts"], r"data"),
    Case(
        "section: a reward model as policy",
        "train",
        ["experiment=reward", "model=causal_lm", "model.path=model", "data.train=pairs.jsonl"],
        r"model",
    ),
]
