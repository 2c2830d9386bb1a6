"""One optimiser step of every algorithm on the device and on a CPU: losses and gradients against float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from gpu_checks.comparing import as_near
from gpu_checks.findings import Finding
from gpu_checks.runs import REWARD, TASKS, UNSAVED, config_of, fit, small_rows
from gpu_checks.setting import Setting
from rlhf_lightning.rollout import Generation

# The trainer's precision, and the dtype whose rounding is the unit.
PRECISIONS = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16}
ROWS, RESPONSE = 8, 20


class Captured(lightning.Callback):
    """The loss and all gradients of the first step, before clipping."""

    loss = torch.zeros(())
    gradient = torch.zeros(0)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.loss = loss.detach().double().cpu()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
        self.gradient = torch.cat([gradient.detach().double().cpu().flatten() for gradient in gradients])


class Fixed:
    """An engine that always gives the same responses: random numbers differ between devices."""

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(3, vocabulary, (ROWS, RESPONSE), generator=generator)
        self.lengths = torch.arange(ROWS) + RESPONSE - ROWS + 1
        self.device = torch.device("cpu")

    def sync(self, model: Any) -> None:
        """Note the policy's device."""
        self.device = next(model.parameters()).device

    def generate(self, prompts: Any, settings: Any, generator: Any = None) -> Generation:
        """Return responses of different lengths, none of which ends."""
        mask = (torch.arange(RESPONSE) < self.lengths[:, None]).float()
        tokens = torch.where(mask.bool(), self.tokens, 0)
        tensors = (tokens, mask, torch.zeros(ROWS, RESPONSE), torch.zeros(ROWS, dtype=torch.bool))
        return Generation(*(x.to(self.device) for x in tensors))


def one_step(
    setting: Setting, task: str, rows: Path, accelerator: str, precision: str, more: Sequence[str] = ()
) -> Captured:
    """Return loss and gradients of the first optimiser step, with `more` overrides."""
    overrides = [*more, f"data.train={rows}", f"trainer.accelerator={accelerator}", f"trainer.precision={precision}"]
    overrides += [
        "trainer.max_steps=1",
        "trainer.max_epochs=1",
        "callbacks.instruments=null",
        "callbacks.guardrails=null",
        *UNSAVED,
    ]
    engine: Any = None
    if task == "ppo":
        overrides += [REWARD, f"rollout.batch_size={ROWS}", f"rollout.max_new_tokens={RESPONSE}"]
        overrides += ["algorithm.num_minibatches=1", "algorithm.ppo_epochs=1", "data.max_prompt_length=64"]
        engine = Fixed(setting.sizes.small.vocabulary)
    else:
        overrides += [f"data.batch_size={ROWS}"]
    captured = Captured()
    fit(config_of(setting, task, setting.llama("small"), overrides), [captured], engine, built_on_cpu=True)
    return captured


def check(setting: Setting) -> Iterator[Finding]:
    """Yield losses and gradients in every precision."""
    for task in TASKS:
        rows = small_rows(setting, task, ROWS)
        exact = one_step(setting, task, rows, "cpu", "64-true")
        for precision, dtype in PRECISIONS.items():
            here = one_step(setting, task, rows, setting.accelerator, precision)
            there = one_step(setting, task, rows, "cpu", precision)
            for name in ("loss", "gradient"):
                results = (getattr(captured, name) for captured in (here, there, exact))
                yield as_near(f"{task}, {precision}: {name}", *results, dtype)
