"""Measure the memory of PPO's four roles (policy, reference, value function, reward model), ours and TRL's.

python scripts/measure_roles.py --model outputs/SmolLM2-135M               # a Markdown table
python scripts/measure_roles.py --model outputs/SmolLM2-135M --only TRL

"Resident" counts the bytes of the parameters of all roles, each storage once, 4-bit weights with their scales. "One
model" is the policy without its adapter, as that run holds it. The peak is that of resident memory (VmHWM) in two
iterations of PPO, minus what was resident before the first model was built; the allocator is told to return freed
tensors immediately. The reward model is an adapter with a score head in the layout `shared`, and a separate network
otherwise; its head is random, which affects neither figure. Every row is a separate process. TRL 1.12.0, the last
version with PPO, gets its own environment, `.venv-trl-1.12.0`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from comparison.inputs import reward_model, write
from comparison.job import Job
from comparison.memory import ALLOCATOR
from comparison.workers import our_worker, peer_worker

from rlhf_lightning.models import LoRA, load_tokenizer
from rlhf_lightning.process.quiet import quieten

TRL = "1.12.0"
BFLOAT16 = ("model.dtype=bfloat16", "trainer.precision=bf16-mixed")
CASES = {
    "ours, `shared`, LoRA, float32": (True, ()),
    "ours, `shared`, LoRA, bfloat16": (True, BFLOAT16),
    "ours, `shared`, LoRA, 4-bit": (True, (*BFLOAT16, "model/quantization=nf4")),
    "ours, `separate`, all weights, float32": (False, ("algorithm.layout=separate",)),
    f"TRL {TRL}, LoRA, float32": (True, ()),
    f"TRL {TRL}, all weights, float32": (False, ()),
}


def prompts(model: str, length: int) -> list[dict[str, str]]:
    """Return texts of this many tokens."""
    tokenizer = load_tokenizer(model)
    words = " ".join(f"the {number} birds flew over the old house," for number in range(length))
    texts = (f"{number} {words}" for number in range(16))
    return [{"prompt": tokenizer.decode(tokenizer(text)["input_ids"][:length])} for text in texts]


def measure(case: str, job: Job, threads: int) -> str:
    """Return a row of the table."""
    start = peer_worker if case.startswith("TRL") else our_worker
    version = (TRL,) if case.startswith("TRL") else ()
    with start(*version, threads, ALLOCATOR) as worker:
        held = worker.ask("prepare", **asdict(job))
        peak = worker.ask("repeat")["peak"]
    figures = (f"{held[name] / 2**20:.0f}" for name in ("model", "resident"))
    return f"| {case} | {' | '.join(figures)} | {held['resident'] / held['model']:.2f} | {peak / 2**20:.0f} |"


def main() -> None:
    """Print the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help="rows with one of these in their name")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    quieten()
    print("| PPO | one model, MiB | resident, MiB | resident / one | peak, MiB |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "rows.jsonl", prompts(given.model, 128))
        reward_model(folder / "adapter", given.model, LoRA())
        reward_model(folder / "whole", given.model)
        iteration = {"batch_size": 4, "max_length": 128, "ppo_epochs": 1, "minibatches": 2}
        job = Job("ppo", given.model, f"{folder}/rows.jsonl", iterations=2, **iteration)
        for case, (lora, overrides) in CASES.items():
            if any(word in case for word in given.only):
                judge = folder / ("adapter" if lora and not case.startswith("TRL") else "whole")
                made = replace(job, lora=lora, reward_model=str(judge), overrides=overrides)
                print(measure(case, made, given.threads), flush=True)


if __name__ == "__main__":
    main()
