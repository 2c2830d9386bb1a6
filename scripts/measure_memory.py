"""Compare the peak memory of three optimiser steps with rlhf-plan, for SFT, DPO and PPO.

python scripts/measure_memory.py --model outputs/SmolLM2-135M                 # a Markdown table
python scripts/measure_memory.py --model outputs/SmolLM2-135M --only DPO

Rows are as long as the plan assumes: data.max_length tokens. Each run is a separate process. Without a GPU, the
measurement is the peak of the process's resident memory (VmHWM) from the first step on, minus what was resident before
the model was built; the allocator is told to return freed tensors immediately, so that resident means alive. With a GPU
it is torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from comparison.memory import ALLOCATOR, resident, restart_peak, unmap

CASES = {
    "SFT, LoRA": ["experiment=sft", "data.loss_on=all", "data.batch_size=2", "model/adapter=lora"],
    "SFT, all weights": ["experiment=sft", "data.loss_on=all", "data.batch_size=2"],
    "DPO, LoRA": ["experiment=dpo", "data.batch_size=1", "model/adapter=lora"],
    "PPO, LoRA": ["experiment=ppo", "model/adapter=lora"],
    "PPO, all weights": ["experiment=ppo"],
    "SFT, LoRA, activation checkpointing": [
        *["experiment=sft", "data.loss_on=all", "data.batch_size=2", "model/adapter=lora"],
        "model.activation_checkpointing=true",
    ],
    "SFT, LoRA on 4-bit weights": [
        *["experiment=sft", "data.loss_on=all", "data.batch_size=2", "model/adapter=lora", "model/quantization=nf4"],
        "model.quantization.compute_dtype=float32",
    ],
}
SUPERVISED = ["data.max_length=256", "data.val_fraction=0", "trainer.max_steps=3"]
PPO = [
    *["data.max_prompt_length=128", "rollout.max_new_tokens=64", "rollout.batch_size=4", "algorithm.num_minibatches=2"],
    *["algorithm.ppo_epochs=1", "trainer.max_epochs=2", f"reward.function={Path(__file__).stem}.length"],
]
COMMON = ["logger=none", "callbacks.checkpoint=null", "callbacks.progress=null", "+trainer.enable_checkpointing=false"]


def words(first: int = 0) -> str:
    """Return a text of about 2,000 tokens; no two share a part."""
    return " ".join(f"the {number} birds flew over the old house," for number in range(first, first + 200))


def length(prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
    """Return a cheap reward."""
    return [float(len(response)) for response in responses]


def overrides(case: str, model: str, folder: Path) -> list[str]:
    """Return the command line of a case."""
    rest = PPO if "experiment=ppo" in CASES[case] else SUPERVISED
    device = f"trainer.accelerator={'gpu' if torch.cuda.is_available() else 'cpu'}"
    data = [device, f"model.path={model}", f"data.train={folder}/rows.jsonl", f"run_dir={folder}/run"]
    return [*CASES[case], *rest, *COMMON, *data]


def write_rows(case: str, folder: Path) -> None:
    """Write rows longer than any limit of the case, without a shared beginning that could be computed once."""
    rows: list[dict[str, str]] = [{"text": words()}] * 16
    if "experiment=dpo" in CASES[case]:
        rows = [{"prompt": "Tell me a story.", "chosen": words(), "rejected": words()[::-1]}] * 16
    if "experiment=ppo" in CASES[case]:
        rows = [{"prompt": words(200 * number)} for number in range(16)]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def planned(arguments: list[str]) -> int:
    """Return the bytes at the peak, as rlhf-plan computes them."""
    from rlhf_lightning.commands.composition import compose_config
    from rlhf_lightning.commands.planned_run import planned_run
    from rlhf_lightning.planning import make_plan

    return make_plan(planned_run(compose_config("train", arguments))).peak


def measured(arguments: list[str]) -> int:
    """Return the bytes at the peak of training in this process."""
    import lightning
    import peft  # noqa: F401  an import is not the model's memory

    from rlhf_lightning.commands.build import build_datamodule, build_module, build_trainer
    from rlhf_lightning.commands.composition import compose_config
    from rlhf_lightning.models import load_tokenizer
    from rlhf_lightning.runs.run import Run

    class FromTheFirstStep(lightning.Callback):
        """Measures from the first step on: loading has its own peak, in main memory rather than the device's."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            unmap(pl_module.parameters())
            restart_peak()

    config = compose_config("train", arguments)
    tokenizer = load_tokenizer(config["model"]["path"])
    datamodule = build_datamodule(config, tokenizer)
    datamodule.setup("fit")
    before = resident("VmRSS")
    trainer = build_trainer(Run(config, Path(config["run_dir"])))
    trainer.callbacks.append(FromTheFirstStep())
    trainer.fit(build_module(config, tokenizer), datamodule)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before


def in_own_process(kind: str, arguments: list[str]) -> int:
    """Run `planned` or `measured` in a fresh process."""
    command = [sys.executable, __file__, "--report", kind, *arguments]
    environment = {**os.environ, **ALLOCATOR, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a Hugging Face folder")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="cases with one of these in their name")
    parser.add_argument("--report", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.report:
        print({"planned": planned, "measured": measured}[given.report[0]](given.report[1:]))
        return
    print("| run | planned, MiB | measured, MiB | planned / measured |\n| --- | --- | --- | --- |")
    for case in CASES:
        if any(word in case for word in given.only):
            with tempfile.TemporaryDirectory() as folder:
                write_rows(case, Path(folder))
                arguments = overrides(case, given.model, Path(folder))
                plan, peak = (in_own_process(kind, arguments) for kind in ("planned", "measured"))
            print(f"| {case} | {plan / 2**20:.0f} | {peak / 2**20:.0f} | {plan / peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
