"""Runs like rlhf-train's: every algorithm trains, saves and exports, and a resumed run ends bitwise the same."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from gpu_checks.findings import Finding, holds
from gpu_checks.runs import REWARD, TASKS, config_of, small_rows
from gpu_checks.setting import Setting
from rlhf_lightning.commands.train import run

PRECISIONS = ("32-true", "bf16-mixed")


def config_for(setting: Setting, task: str, name: str, more: list[str]) -> dict[str, Any]:
    """Return the config of a run of two epochs, or iterations, whose steps change the weights."""
    overrides = [f"data.train={small_rows(setting, task)}", "trainer.max_epochs=2", "optimizer.lr=1e-3", *more]
    overrides += ["+trainer.enable_progress_bar=false", "callbacks.instruments=null"]
    if task == "ppo":
        overrides += [REWARD, "rollout.batch_size=8", "rollout.max_new_tokens=12", "algorithm.num_minibatches=2"]
        overrides += ["algorithm.ppo_epochs=1", "data.max_prompt_length=64"]
    else:
        overrides += ["data.batch_size=4"]
    return config_of(setting, task, setting.llama("small"), overrides, name)


def check(setting: Setting) -> Iterator[Finding]:
    """Compare uninterrupted with resumed runs."""
    for task in TASKS:
        for precision in PRECISIONS if task == "ppo" else PRECISIONS[:1]:
            name = f"{task}-{precision}"
            whole = config_for(setting, task, f"{name}-whole", [f"trainer.precision={precision}"])
            run(copy.deepcopy(whole))
            first = config_for(setting, task, f"{name}-resumed", [f"trainer.precision={precision}"])
            first["trainer"]["max_epochs"] = 1
            run(copy.deepcopy(first))
            half = weights(first)
            run({**copy.deepcopy(first), "ckpt": "last", "trainer": {**first["trainer"], "max_epochs": 2}})
            ends = weights(whole)
            yield holds(f"{task}, {precision}: the second half of the run changes the weights", not equal(ends, half))
            same = equal(ends, weights(first))
            yield holds(f"{task}, {precision}: a resumed run ends in the same bits", same)
            if not same:  # is it due to resuming, or would any second run differ?
                again = config_for(setting, task, f"{name}-again", [f"trainer.precision={precision}"])
                run(copy.deepcopy(again))
                alike = equal(ends, weights(again))
                yield holds(f"{task}, {precision}: a second uninterrupted run ends in the same bits", alike)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Return whether weights are bitwise equal."""
    return all(torch.equal(one[name], weight) for name, weight in other.items())


def weights(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights that a run exported."""
    return load_file(Path(config["run_dir"]) / "model" / "model.safetensors")
