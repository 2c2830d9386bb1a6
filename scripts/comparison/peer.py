"""The peer's worker: TRL's trainers, and transformers' `generate`, in an environment without the project.

TRL's own defaults are kept, except where both sides must do the same: float32, no gradient checkpointing, rows in the
order of the file, no reports and no checkpoints.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import peft
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    TrainerCallback,
)

from comparison.answering import answer
from comparison.job import LEARNING_RATE, LORA_ALPHA, LORA_RANK, Job
from comparison.memory import base_bytes, resident, restart_peak, storage_bytes, unmap


class Stopwatch(TrainerCallback):
    """The seconds between the start and the end of training."""

    seconds = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.seconds += time.perf_counter()


def read(path: str) -> list[dict[str, Any]]:
    """Return rows of a JSONL file, with the columns that TRL knows."""
    known = ("prompt", "completion", "chosen", "rejected")
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line]
    return [{name: row[name] for name in known if name in row} for row in rows]


def lora(task: str) -> peft.LoraConfig:
    """Return the adapter that our side trains."""
    more = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]} if task == "reward" else {"task_type": "CAUSAL_LM"}
    return peft.LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear", **more)  # type: ignore[arg-type]


def causal_lm(job: Job) -> Any:
    """Return the model to train."""
    return AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)


def classifier(folder: str, pad_id: int) -> Any:
    """Return a network with a score head."""
    return AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, dtype=torch.float32, pad_token_id=pad_id
    )


def arguments(job: Job) -> dict[str, Any]:
    """Return the arguments of every trainer."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": job.batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def supervised(job: Job, tokenizer: Any, stopwatch: Stopwatch) -> Any:
    """Return TRL's trainer for SFT, reward models or DPO."""
    import trl

    config, trainer = {
        "sft": (trl.SFTConfig, trl.SFTTrainer),
        "reward": (trl.RewardConfig, trl.RewardTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
    }[job.task]
    settings = config(
        **arguments(job), num_train_epochs=1, max_length=job.max_length, train_sampling_strategy="sequential"
    )
    return trainer(
        model=classifier(job.model, tokenizer.pad_token_id) if job.task == "reward" else causal_lm(job),
        args=settings,
        train_dataset=Dataset.from_list(read(job.data)),
        processing_class=tokenizer,
        peft_config=lora(job.task) if job.lora else None,
        callbacks=[stopwatch],
    )


def ppo(job: Job, tokenizer: Any, stopwatch: Stopwatch) -> Any:
    """Return TRL's PPO: a minibatch is an optimiser step; critic and reward model are separate networks."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    settings = PPOConfig(
        **arguments(job),
        num_mini_batches=job.minibatches,
        num_ppo_epochs=job.ppo_epochs,
        total_episodes=job.batch_size * job.iterations,
        response_length=job.response_length,
        temperature=1.0,
        num_sample_generations=0,
    )
    prompts = [tokenizer(row["prompt"])["input_ids"][-job.max_length :] for row in read(job.data)]
    return PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=causal_lm(job),
        ref_model=None,
        reward_model=classifier(job.reward_model, tokenizer.pad_token_id),
        value_model=classifier(job.reward_model, tokenizer.pad_token_id),
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=lora("ppo") if job.lora else None,
        callbacks=[stopwatch],
    )


class Training:
    """A trainer that every repetition runs again from its present weights."""

    def __init__(self, job: Job) -> None:
        self.job, self.stopwatch = job, Stopwatch()
        tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left" if job.task == "ppo" else "right")
        self.before = resident("VmRSS")
        self.trainer = (ppo if job.task == "ppo" else supervised)(job, tokenizer, self.stopwatch)
        unmap(self.networks())

    @property
    def policy(self) -> Any:
        """Return the trained network."""
        return self.trainer.policy_model if self.job.task == "ppo" else self.trainer.model

    def networks(self) -> list[torch.nn.Parameter]:
        """Return the weights of all roles."""
        roles = [self.trainer.model, getattr(self.trainer, "ref_model", None)]
        roles.append(getattr(self.trainer, "reward_model", None))
        return [p for role in roles if role is not None for p in role.parameters()]

    def repeat(self) -> dict[str, Any]:
        """Run one repetition."""
        restart_peak()
        self.trainer.train()
        done = self.job.batch_size * self.job.iterations if self.job.task == "ppo" else len(self.trainer.train_dataset)
        return {"seconds": self.stopwatch.seconds, "done": done, "peak": resident("VmHWM") - self.before}


class Decoding:
    """Greedy answers of `generate` to every prompt, a batch at a time."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tokenizer = AutoTokenizer.from_pretrained(job.model, padding_side="left")
        rows = [self.tokenize(row["prompt"])[-job.max_length :] for row in read(job.data)]
        self.batches = [
            self.tokenizer.pad({"input_ids": rows[start : start + job.batch_size]}, return_tensors="pt")
            for start in range(0, len(rows), job.batch_size)
        ]
        self.before = resident("VmRSS")
        self.policy = causal_lm(job).eval()
        unmap(self.policy.parameters())

    def tokenize(self, prompt: Any) -> list[int]:
        """Tokenise a conversation with its template, or a text."""
        if isinstance(prompt, str):
            ids: list[int] = self.tokenizer(prompt)["input_ids"]
        else:
            ids = self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
        return ids

    def networks(self) -> list[torch.nn.Parameter]:
        """Return the weights."""
        return list(self.policy.parameters())

    def repeat(self) -> dict[str, Any]:
        """Run one repetition."""
        end = self.tokenizer.eos_token_id
        settings = GenerationConfig(
            max_new_tokens=self.job.response_length,
            do_sample=False,
            eos_token_id=end,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        restart_peak()
        started = time.perf_counter()
        answers = [self.policy.generate(**batch, generation_config=settings) for batch in self.batches]
        seconds = time.perf_counter() - started
        lengths = []
        for batch, ids in zip(self.batches, answers, strict=True):
            responses = ids[:, batch["input_ids"].shape[1] :]
            before_end = (responses == end).cumsum(1) - (responses == end).long() == 0
            lengths += before_end.sum(1).tolist()
        return {
            "seconds": seconds,
            "done": sum(lengths),
            "lengths": lengths,
            "peak": resident("VmHWM") - self.before,
        }


def main() -> None:
    """Answer requests."""
    run: dict[str, Any] = {}

    def prepare(**job: Any) -> dict[str, Any]:
        wanted = Job(**job)
        run["now"] = built = (Decoding if wanted.task == "decode" else Training)(wanted)
        return {"resident": storage_bytes(built.networks()), "model": base_bytes(built.policy)}

    answer({"prepare": prepare, "repeat": lambda: run["now"].repeat()})


if __name__ == "__main__":
    main()
