"""Rows per second compared with TRL: all weights of the large network, in bfloat16 autocast on a GPU."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from gpu_checks.findings import Finding, NotMeasuredError
from gpu_checks.runs import UNSAVED, Timed, config_of, fit, wait
from gpu_checks.setting import Setting, demonstrations, preferences

WARM_UP = 2  # steps


def check(setting: Setting) -> Iterator[Finding]:
    """Compare SFT and DPO, with rows of different lengths."""
    if find_spec("trl") is None:
        raise NotMeasuredError("trl is not installed")
    sizes = setting.sizes
    count, half = sizes.rows * (sizes.steps + WARM_UP), sizes.length // 2
    for task, write in (("sft", demonstrations), ("dpo", preferences)):
        lengths = [half // 4 + half * 3 * row // (4 * count) for row in range(count)]
        made = [write(1, half // 2, length, seed)[0] for seed, length in enumerate(lengths)]
        rows = setting.rows(task, made)
        speeds = {}
        for name, train in (("ours", ours), ("TRL", peer)):
            speeds[name] = sizes.steps * sizes.rows / train(setting, task, rows)
            gc.collect()
            if setting.device == "cuda":
                torch.cuda.empty_cache()
            yield Finding(f"{task}, {name}", speeds[name], "rows/s")
        yield Finding(f"{task}", speeds["ours"] / speeds["TRL"], "times TRL's speed")


def ours(setting: Setting, task: str, rows: Path) -> float:
    """Return the seconds of the steps after the first ones."""
    overrides = [
        f"data.train={rows}",
        f"data.batch_size={setting.sizes.rows}",
        f"data.max_length={setting.sizes.length}",
    ]
    overrides += ["optimizer.fused=true", *UNSAVED]  # as in TRL
    if setting.device == "cuda":
        overrides += ["trainer.precision=bf16-mixed"]
    timed = Timed(WARM_UP)
    fit(config_of(setting, task, setting.llama("large"), overrides), [timed])
    return timed.seconds


def peer(setting: Setting, task: str, rows: Path) -> float:
    """Return the same for TRL, with its own defaults except where both sides must do the same."""
    import trl
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class TimedPeer(TrainerCallback):
        """The seconds of the steps after the first ones."""

        seconds = 0.0

        def on_step_end(self, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                wait(setting.device)
                self.seconds = -time.perf_counter()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            wait(setting.device)
            self.seconds += time.perf_counter()

    on_gpu, timed = setting.device == "cuda", TimedPeer()
    configure, trainer = {"sft": (trl.SFTConfig, trl.SFTTrainer), "dpo": (trl.DPOConfig, trl.DPOTrainer)}[task]
    arguments = configure(
        output_dir=str(setting.folder / f"trl-{task}"),
        per_device_train_batch_size=setting.sizes.rows,
        num_train_epochs=1,
        max_length=setting.sizes.length,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    folder = setting.llama("large")
    trainer(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_json(str(rows), cache_dir=str(setting.folder / "datasets")),
        processing_class=AutoTokenizer.from_pretrained(folder),
        callbacks=[timed],
    ).train()
    return timed.seconds
