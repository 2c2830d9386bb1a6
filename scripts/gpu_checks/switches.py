"""Settings of torch that change numbers or speed: deterministic algorithms and TF32."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gpu_checks.agreement import one_step
from gpu_checks.comparing import distance, median_seconds
from gpu_checks.findings import Finding, holds
from gpu_checks.resume import config_for, equal, weights
from gpu_checks.runs import small_rows
from gpu_checks.setting import Setting
from rlhf_lightning.commands.train import run

PRODUCT = {"cuda": 8192, "cpu": 512}  # rows and columns


def check(setting: Setting) -> Iterator[Finding]:
    """Check PPO under trainer.deterministic, and float32 products with and without TF32."""
    ends = []
    for number in range(2):
        config = config_for(setting, "ppo", f"deterministic-{number}", ["trainer.deterministic=true"])
        run(config)
        ends.append(weights(config))
    torch.use_deterministic_algorithms(False)
    yield holds("trainer.deterministic=true: PPO runs, twice with the same end", equal(*ends))
    yield from tf32(setting)


def tf32(setting: Setting) -> Iterator[Finding]:
    """Measure TF32's loss of precision and gain in speed; only GPUs have it."""
    rows, size = small_rows(setting, "sft"), PRODUCT[setting.device]
    exact = one_step(setting, "sft", rows, "cpu", "64-true")
    left, right = (torch.randn(size, size, device=setting.device) for _ in range(2))
    seconds = {}
    for name, precision in (("without TF32", "highest"), ("with TF32", "high")):
        torch.set_float32_matmul_precision(precision)
        step = one_step(setting, "sft", rows, setting.accelerator, "32-true")
        yield Finding(f"SFT's gradient {name}", distance(step.gradient, exact.gradient), "of float64")
        seconds[name] = median_seconds(lambda: left @ right, setting.device, setting.sizes.repeats)
        yield Finding(f"a square product {name}", 2 * size**3 / seconds[name] / 1e12, "TFLOP/s")
    torch.set_float32_matmul_precision("highest")
