"""Our worker: runs of the project, built from its configs as `rlhf-train` builds them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import peft  # noqa: F401  an import is not the model's memory
import torch
from torch import Tensor, nn

from comparison import floors
from comparison.answering import answer
from comparison.job import LEARNING_RATE, LORA_ALPHA, LORA_RANK, Job
from comparison.memory import base_bytes, resident, restart_peak, storage_bytes, unmap
from rlhf_lightning.commands.build import build_datamodule, build_module, build_trainer
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.data import PromptDataModule
from rlhf_lightning.models import load_causal_lm, load_tokenizer
from rlhf_lightning.process.memory import settle_memory
from rlhf_lightning.process.quiet import quieten
from rlhf_lightning.rollout import NativeEngine, SamplingSettings
from rlhf_lightning.runs.run import Run

NO_EOS = [-1]  # a token that no model samples: every response has its full length
WITHOUT = [
    *("logger=none", "callbacks.checkpoint=null", "+trainer.enable_checkpointing=false"),
    *("callbacks.progress=null", "+trainer.enable_progress_bar=false"),
]


class Stopwatch(lightning.Callback):
    """The seconds between the start and the end of training."""

    seconds = 0.0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds += time.perf_counter()


def overrides(job: Job) -> list[str]:
    """Return the command line of a job."""
    lines = [
        *(f"experiment={job.task}", f"model.path={job.model}", f"data.train={job.data}", *WITHOUT),
        f"model.kernels={job.kernels}",
        *("trainer.accelerator=cpu", f"trainer.max_epochs={job.iterations}"),
        *(f"optimizer.lr={LEARNING_RATE}", "optimizer.fused=true"),  # TRL's is
    ]
    if job.lora:
        lines += ["model/adapter=lora", f"model.adapter.rank={LORA_RANK}", f"model.adapter.alpha={LORA_ALPHA}"]
    if job.task == "ppo":
        lines += [
            *(f"data.max_prompt_length={job.max_length}", f"rollout.max_new_tokens={job.response_length}"),
            *(f"rollout.batch_size={job.batch_size}", f"algorithm.num_minibatches={job.minibatches}"),
            *(f"algorithm.ppo_epochs={job.ppo_epochs}", f"reward.model={job.reward_model}"),
            "algorithm.old_logprobs=engine",
        ]
    else:
        lines += ["data.val_fraction=0", f"data.batch_size={job.batch_size}", f"data.max_length={job.max_length}"]
    return [*lines, *job.overrides]


class Training:
    """A module that every repetition trains further from its present weights."""

    def __init__(self, job: Job) -> None:
        self.job, self.folder = job, tempfile.mkdtemp()
        self.config = compose_config("train", [*overrides(job), f"run_dir={self.folder}"])
        tokenizer = load_tokenizer(job.model)
        self.datamodule: Any = build_datamodule(self.config, tokenizer)
        self.datamodule.setup("fit")
        self.before = resident("VmRSS")
        self.module: Any = build_module(self.config, tokenizer)
        if job.task == "ppo":
            self.module.engine = NativeEngine(tokenizer.pad_token_id, NO_EOS)
        self.module.configure_model()
        unmap(p for p in networks(self.module) if isinstance(p, nn.Parameter))

    @property
    def policy(self) -> Any:
        """Return the trained network."""
        return self.module.policy if self.job.task == "ppo" else self.module.model

    def repeat(self) -> dict[str, Any]:
        """Run one repetition: return its duration, what was done, and the least that it needs."""
        trainer = build_trainer(Run(self.config, Path(self.folder)))
        stopwatch = Stopwatch()
        trainer.callbacks.append(stopwatch)  # type: ignore[attr-defined]
        restart_peak()
        trainer.fit(self.module, self.datamodule)
        self.module.trainer = self.datamodule.trainer = None  # or the old optimiser state stays beside the new one
        peak, update = resident("VmHWM") - self.before, trainer.callback_metrics.get("time/update")
        return {
            "seconds": stopwatch.seconds,
            "done": self.job.batch_size * self.job.iterations if self.job.task == "ppo" else len(self.rows),
            "peak": peak,
            "update_seconds": None if update is None else float(update),
            **self.needed(),
        }

    @property
    def rows(self) -> list[Any]:
        """Return the tokenised rows."""
        rows: list[Any] = self.datamodule.train_rows
        return rows

    def needed(self) -> dict[str, float]:
        """Return the least floating-point operations of a repetition, and the least bytes to read while decoding."""
        network = floors.Network.of(self.policy)
        if self.job.task == "ppo":
            rollout = self.module.last_rollout
            rows = list(zip(rollout.prompt_mask.sum(1).tolist(), rollout.mask.sum(1).tolist(), strict=True))
            return floors.ppo(network, rows, self.job)
        if self.job.task == "sft":
            return floors.sft(network, [(len(row.input_ids), int(row.weight)) for row in self.rows])
        pairs = [(len(row.prompt_ids), [len(answer) for answer in row.answers]) for row in self.rows]
        return floors.preferences(network, pairs, reference=self.job.task == "dpo")


class Decoding:
    """Greedy answers of the native engine to every prompt."""

    def __init__(self, job: Job) -> None:
        self.job = job
        tokenizer = load_tokenizer(job.model)
        datamodule = PromptDataModule(tokenizer, job.data, max_prompt_length=job.max_length)
        datamodule.setup()
        self.prompts = [row.input_ids for row in datamodule.train_prompts]
        self.before = resident("VmRSS")
        self.policy = load_causal_lm(job.model, kernels=job.kernels)
        unmap(self.policy.parameters())
        self.engine = NativeEngine(tokenizer.pad_token_id, [tokenizer.eos_token_id], job.batch_size)
        self.engine.sync(self.policy)

    def repeat(self) -> dict[str, Any]:
        """Run one repetition."""
        restart_peak()
        started = time.perf_counter()
        generation = self.engine.generate(self.prompts, SamplingSettings(self.job.response_length, temperature=0.0))
        seconds = time.perf_counter() - started
        lengths = generation.mask.sum(1).long().tolist()
        rows = [(len(prompt), length) for prompt, length in zip(self.prompts, lengths, strict=True)]
        network = floors.Network.of(self.policy)
        needed = floors.decoding(network, rows, self.job.batch_size)
        return {
            "seconds": seconds,
            "done": sum(lengths),
            "lengths": lengths,
            "peak": resident("VmHWM") - self.before,
            **needed,
        }


def networks(module: Any) -> Iterator[Tensor]:
    """Yield the weights of all roles; a shared one may come several times."""
    yield from module.parameters()
    reference, reward = getattr(module, "reference", None), getattr(module, "reward", None)
    if reference is not None:
        yield from reference._model.parameters()
    network = getattr(reward, "model", None)
    if isinstance(network, nn.Module):
        yield from network.parameters()
    elif network is not None:
        yield from network.policy.parameters()
        yield network.head


def main() -> None:
    """Answer requests."""
    quieten()
    settle_memory()
    run: dict[str, Any] = {}

    def prepare(**job: Any) -> dict[str, Any]:
        wanted = Job(**{**job, "overrides": tuple(job["overrides"])})
        run["now"] = built = (Decoding if wanted.task == "decode" else Training)(wanted)
        tensors = networks(built.module) if isinstance(built, Training) else built.policy.parameters()
        return {"resident": storage_bytes(tensors), "model": base_bytes(built.policy)}

    def profile() -> dict[str, Any]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            repeat = run["now"].repeat()
        operators = [(event.key, event.self_cpu_time_total / 1e6, event.count) for event in seen.key_averages()]
        return {**repeat, "operators": operators}

    answer(
        {
            "prepare": prepare,
            "repeat": lambda: run["now"].repeat(),
            "profile": profile,
            "speeds": floors.measured_speeds,
        }
    )


if __name__ == "__main__":
    main()
