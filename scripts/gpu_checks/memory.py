"""Steps of the large network with LoRA: planned and measured memory, and the share of the peak that they use."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import lightning
import torch
from comparison.memory import resident, restart_peak, unmap

from gpu_checks.findings import Finding
from gpu_checks.runs import REWARD, UNSAVED, config_of, fit
from gpu_checks.setting import Setting, demonstrations, preferences, prompts
from rlhf_lightning.commands.planned_run import planned_run
from rlhf_lightning.planning import make_plan
from rlhf_lightning.planning.table import RESERVE


class FromTheFirstStep(lightning.Callback):
    """Measures the bytes from the first step on, because loading has its own peak."""

    before = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            unmap(pl_module.parameters())
            restart_peak()


def within(setting: Setting, share: float) -> tuple[str, bool]:
    """Return the range that the share must be in: rlhf-plan reserves a tenth of a device for what it does not count.

    On a CPU libraries need more than a small network does.
    """
    least = 1 - RESERVE
    return (f">= {least:.2g}", share >= least) if setting.device == "cuda" else ("", True)


def check_task(setting: Setting, task: str) -> Iterator[Finding]:
    """Yield peak and utilisation of a task's steps, with all rows as long as the plan assumes."""
    sizes = setting.sizes
    count, half = sizes.rows * sizes.steps, sizes.length // 2
    made = {"sft": demonstrations(count, half, half), "dpo": preferences(count, half, half)}
    rows = setting.rows(task, made.get(task) or prompts(count, 3 * sizes.length // 4))
    overrides = [f"data.train={rows}", "model/adapter=lora", "trainer.log_every_n_steps=1", *UNSAVED]
    if setting.device == "cuda":
        overrides += ["model.dtype=bfloat16", "trainer.precision=bf16-mixed"]
    if task == "ppo":
        overrides += [REWARD, f"rollout.batch_size={4 * sizes.rows}", "algorithm.num_minibatches=4"]
        overrides += [f"rollout.max_new_tokens={sizes.length // 4}", f"data.max_prompt_length={3 * sizes.length // 4}"]
        overrides += ["algorithm.ppo_epochs=1", "trainer.max_epochs=2"]
    else:
        overrides += [f"data.batch_size={sizes.rows}", f"data.max_length={sizes.length}"]
        overrides += [f"trainer.max_steps={sizes.steps}"]
    config = config_of(setting, task, setting.llama("large"), overrides)
    plan = make_plan(planned_run(config)).peak
    gc.collect()
    before = resident("VmRSS")
    trainer, _ = fit(config, [FromTheFirstStep()])
    peak = torch.cuda.max_memory_allocated() if setting.device == "cuda" else resident("VmHWM") - before
    yield Finding("planned peak", plan / 2**20, "MiB")
    yield Finding("measured peak", peak / 2**20, "MiB")
    if peak > 0:
        yield Finding("planned / measured", plan / peak, "", *within(setting, plan / peak))
    else:  # a process that has run before may return more memory than small networks take
        yield Finding("planned / measured", None, "", "measured in a process of its own")
    metrics = trainer.callback_metrics
    speed = metrics.get("perf/tokens_per_second", metrics.get("perf/update_tokens_per_second"))
    yield Finding("model FLOP utilisation", 100 * float(metrics["perf/mfu"]), "%")
    yield Finding("peak of a square product", float(metrics["perf/peak_teraflops"]), "TFLOP/s")
    yield Finding("training", float(speed), "tokens/s")
    if "rollout/tokens_per_second" in metrics:
        yield Finding("rollout", float(metrics["rollout/tokens_per_second"]), "tokens/s")
