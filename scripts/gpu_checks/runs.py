"""Training runs, built from the project's configs as rlhf-train builds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch

from gpu_checks.setting import Setting, demonstrations, preferences, prompts
from rlhf_lightning.commands.build import build_datamodule, build_module, build_trainer
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.experience.stopwatch import now
from rlhf_lightning.models import load_tokenizer
from rlhf_lightning.runs.run import Run

TASKS = ("sft", "reward", "dpo", "ppo")
REWARD = "reward.function=gpu_checks.setting.length_reward"
QUIET = ["logger=none", "callbacks.progress=null"]
UNSAVED = ["callbacks.checkpoint=null", "+trainer.enable_checkpointing=false", "+trainer.enable_progress_bar=false"]


def config_of(setting: Setting, task: str, model: Path, overrides: Sequence[str], run: str = "run") -> dict[str, Any]:
    """Return a run's config on the setting's device, with float32 weights unless the overrides say otherwise."""
    base = [f"experiment={task}", f"model.path={model}", f"trainer.accelerator={setting.accelerator}", *QUIET]
    validation = [] if task == "ppo" else ["data.val_fraction=0"]
    scheduler = ["scheduler=constant"]
    return compose_config("train", [*base, *validation, *scheduler, f"run_dir={setting.folder}/{run}", *overrides])


def small_rows(setting: Setting, task: str, count: int = 8) -> Path:
    """Write a few short rows of a task."""
    made = {"sft": demonstrations(count, 12, 20), "ppo": prompts(count, 12)}.get(task) or preferences(count, 12, 20)
    return setting.rows(task, made)


class Timed(lightning.Callback):
    """The seconds of the steps after the first ones, which warm up."""

    def __init__(self, warm_up: int) -> None:
        self.warm_up, self.steps, self.seconds = warm_up, 0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps += 1
        if self.steps == self.warm_up:
            self.seconds = -now(pl_module.device)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.seconds += now(pl_module.device)


def fit(
    config: dict[str, Any],
    callbacks: Sequence[Any] = (),
    engine: Any = None,
    built_on_cpu: bool = False,
) -> tuple[Any, Any]:
    """Train, and return the trainer and the module.

    Args:
        config: a composed training config.
        callbacks: in addition to the config's own.
        engine: samples PPO's responses; None: the config's.
        built_on_cpu: draw initial weights on a CPU, so that they are the same on every device.
    """
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    tokenizer = load_tokenizer(config["model"]["path"])
    module: Any = build_module(config, tokenizer)
    if engine is not None:
        module.engine = engine
    if built_on_cpu:
        module.configure_model()
    trainer: Any = build_trainer(Run(config, Path(config["run_dir"])))
    trainer.callbacks.extend(callbacks)
    trainer.fit(module, build_datamodule(config, tokenizer))
    return trainer, module


def wait(device: str) -> None:
    """Wait until the device has finished its queued work."""
    if device == "cuda":
        torch.cuda.synchronize()
