"""Real commands on the pretended device, one after another in the process that pretends it."""

from __future__ import annotations

import tests.devices.pretended as pretended  # isort: skip  # before torch

import contextlib
import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM

from rlhf_lightning.config import devices
from tests.tiny import WORDS, tiny_model, tiny_tokenizer

Words = tuple[str, ...]

DEVICE = ("trainer.accelerator=gpu", "trainer.devices=1", "logger=none")
DATA = {"sft": "sft", "reward": "pairs", "ppo": "prompts", "dpo": "pairs"}
SHORT = ("rollout.batch_size=8", "rollout.max_new_tokens=4")
SCORED = ("reward.function=tests.devices.scenarios.early", "trainer.max_epochs=2", *SHORT)


def train(experiment: str, *overrides: str, model: str = "base") -> Words:
    """Return a training run in its own folder, which its arguments name."""
    chosen = overrides if experiment != "ppo" else (*SCORED, *overrides)
    own = (f"data.train={DATA[experiment]}.jsonl", f"model.path={model}")
    return ("rlhf-train", f"experiment={experiment}", *own, *DEVICE, *chosen)


def stages() -> Words:
    """Return the pipeline's stages on the device."""
    files = [f"stages.{stage}.data.train={name}.jsonl" for stage, name in DATA.items()]
    return (*files, *(f"stages.{stage}.trainer.accelerator=gpu" for stage in DATA))


PIPELINE = (
    *("rlhf-pipeline", "pipeline=instructgpt", "+stages.dpo={experiment: dpo, model_from: sft}", "logger=none"),
    *("stages.sft.model.path=base", "run_dir=run", "stages.ppo.trainer.max_epochs=1", *stages()),
    *(f"stages.ppo.{override}" for override in SHORT),
)
EVALUATE = ("rlhf-evaluate", "baseline=a", "prompts=prompts.jsonl", "max_new_tokens=4", "proxy.model=run/reward")
GOLD = "gold.function=tests.devices.scenarios.early"
CHAT = ("rlhf-chat", "temperature=0", "max_new_tokens=4")

USUAL: tuple[Words, ...] = (
    PIPELINE,
    (*EVALUATE, "policies={a: run/sft, b: run/sft}", "run_dir=evaluated"),
    (*CHAT, "model=run/ppo", "compare_with=run/dpo"),
    ("rlhf-export", "run=run/ppo", "to=exported"),
)
REFUSED: Words = train("sft", "trainer.devices=2")
PRECISIONS = ("bf16-mixed", "bf16-true", "16-mixed")
FAMILIES = ("gpt2", "gemma2", "mamba")
# No classifier, and a view of a weight in inference mode, which the pretended device cannot create.
NOT_OF_MAMBA = ("reward", "ppo")
RESUMED = train("ppo", "algorithm.layout=separate", "run_dir=resumed", "ckpt=null", "trainer.max_epochs=1")
EVERYTHING = (
    *("model/adapter=lora", "trainer.deterministic=true", "matmul_precision=high", "algorithm.old_logprobs=engine"),
    *("algorithm.entropy_coef=0.01", "algorithm.tokens_per_microbatch=32", "algorithm.shaping.normalize=true"),
)
MORE: tuple[Words, ...] = (
    *(train(name, f"trainer.precision={precision}") for precision in PRECISIONS for name in DATA),
    *(
        train(name, model=family)
        for family in FAMILIES
        for name in DATA
        if family != "mamba" or name not in NOT_OF_MAMBA
    ),
    train("sft", "model/adapter=lora", "run_dir=lora", "data.batch_size=2", "trainer.accumulate_grad_batches=2"),
    train("reward", "model/adapter=lora", "model.activation_checkpointing=true"),
    train("dpo", "model/adapter=lora", "algorithm.precompute_reference=true", "trainer.precision=bf16-mixed"),
    train("ppo", *EVERYTHING),
    train("ppo", "algorithm.ptx.coef=0.1", "algorithm.ptx.data=sft.jsonl", "algorithm.kl.placement=loss"),
    RESUMED,
    (*RESUMED[:-2], "ckpt=last"),
    ("rlhf-train", "-m", "seed=0,1", *train("sft")[1:]),
    (*EVALUATE[:-1], "policies={a: base, b: lora}", GOLD, "dtype=bfloat16", "run_dir=evaluated"),
    (*CHAT, "model=lora", "dtype=bfloat16"),
    ("rlhf-export", "run=lora", "to=adapter", "form=adapter"),
)


def write_inputs(folder: Path) -> None:
    """Write a base model and a file of rows for every kind of stage."""
    tiny_model(layers=1).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    texts = [f"{a} {b}" for a in WORDS[:4] for b in WORDS[:2]]
    rows = {
        "sft": [{"prompt": text, "completion": text[::-1]} for text in texts],
        "pairs": [{"prompt": text, "chosen": f"{text} a", "rejected": text[2]} for text in texts],
        "prompts": [{"prompt": text} for text in texts],
    }
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def write_families(folder: Path) -> None:
    """Write a tiny model of each of FAMILIES."""
    sizes = {"vocab_size": len(WORDS) + 3, "hidden_size": 32, "pad_token_id": 0, "eos_token_id": 1}
    of_mamba = {"state_size": 4, "num_hidden_layers": 1}
    for family in FAMILIES:
        if family == "mamba":
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **of_mamba))
        else:
            model = tiny_model(family)
        model.save_pretrained(folder / family)
        tiny_tokenizer().save_pretrained(folder / family)


def call(words: Words) -> dict[str, Any]:
    """Call one command like its script; return its words, exit code, output, and operations on the device."""
    main = importlib.import_module(f"rlhf_lightning.commands.{words[0].removeprefix('rlhf-')}").main
    out, errors, code, before = io.StringIO(), io.StringIO(), 0, pretended.waits.operations
    arguments, typed = sys.argv, sys.stdin
    sys.argv, sys.stdin = list(words), io.StringIO("a b\nc d\n/exit\n")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv, sys.stdin = arguments, typed
    operations = pretended.waits.operations - before
    return {"words": words, "code": code, "out": out.getvalue(), "errors": errors.getvalue(), "operations": operations}


def run(folder: Path, commands: tuple[Words, ...]) -> list[dict[str, Any]]:
    """Run commands in a folder; run folders that they do not name are numbered."""
    write_inputs(folder)
    devices._has_gpu = lambda: True  # its device files are not pretended
    former = Path.cwd()
    os.chdir(folder)
    try:
        return [call(_named(words, number)) for number, words in enumerate(commands)]
    finally:
        os.chdir(former)


def _named(words: Words, number: int) -> Words:
    named = words[0] != "rlhf-train" or any(word.startswith(("run_dir=", "-m")) for word in words)
    return words if named else (*words, f"run_dir=run_{number}")
