"""The learning rate: logged by every module, and scheduled by what a run has really done."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup
from transformers import get_linear_schedule_with_warmup as linear_schedule

from rlhf_lightning.callbacks import MetricsFile, ReproducibleResume, ResumableCheckpoint
from rlhf_lightning.errors import UserError
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer

FAST = partial(torch.optim.Adam, lr=1e-2)
LINEAR = partial(linear_schedule, num_warmup_steps=0)
COSINE = partial(get_cosine_schedule_with_warmup, num_warmup_steps=2)


class Rates(L.Callback):
    """Records the learning rate of every optimiser step, by epoch."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen += [[] for _ in range(trainer.current_epoch + 1 - len(self.seen))]
        self.seen[trainer.current_epoch].append(optimizer.param_groups[0]["lr"])


def rates(folder: Path, module: Any, data: Any, scheduler: Any, **settings: Any) -> tuple[Rates, L.Trainer]:
    module.make_scheduler = scheduler
    watch = Rates()
    run = trainer(folder, callbacks=[watch, *settings.pop("callbacks", [])], **settings)
    run.fit(module, datamodule=data, ckpt_path=settings.get("ckpt_path"))
    return watch, run


def stopping(**settings: Any) -> tuple[Any, Any]:
    """Return PPO with 16 steps per iteration, most of which `target_kl` skips."""
    return ppo(optimizer=FAST, target_kl=0.01, **settings)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_schedule_comes_down_although_target_kl_leaves_out_steps(accumulate: int, tmp_path: Path) -> None:
    watch, run = rates(tmp_path, *stopping(), LINEAR, max_epochs=4, accumulate_grad_batches=accumulate)
    counts = [len(epoch) for epoch in watch.seen]
    assert min(counts) < 16
    for i, epoch in enumerate(watch.seen):
        assert epoch == pytest.approx([1e-2 * (1 - (16 * i + step) / 64) for step in range(len(epoch))])
    assert run.optimizers[0].param_groups[0]["lr"] == 0
    assert float(run.callback_metrics["lr"]) == pytest.approx(watch.seen[-1][-1])


def test_without_a_stop_the_schedule_counts_optimiser_steps(tmp_path: Path) -> None:
    for settings, total in (({}, 32), ({"max_steps": 20}, 20), ({"max_epochs": -1, "max_steps": 24}, 24)):
        watch, _ = rates(tmp_path, *ppo(optimizer=FAST), LINEAR, **{"max_epochs": 2, **settings})
        steps = [rate for epoch in watch.seen for rate in epoch]
        assert steps == pytest.approx([1e-2 * (1 - step / total) for step in range(total)])


@pytest.mark.parametrize("max_steps", [12, 40])
def test_whichever_ends_the_run_ends_the_schedule_which_never_turns(max_steps: int, tmp_path: Path) -> None:
    """Beyond its end a cosine would rise again."""
    watch, run = rates(tmp_path, *stopping(), COSINE, max_epochs=6, max_steps=max_steps)
    steps = [rate for epoch in watch.seen for rate in epoch]
    top = steps.index(max(steps))
    assert steps[top:] == sorted(steps[top:], reverse=True)
    assert run.optimizers[0].param_groups[0]["lr"] < 0.05 * 1e-2


def test_a_resumed_run_goes_on_with_its_schedule(tmp_path: Path) -> None:
    def run(resume: Path | None) -> list[list[float]]:
        save = ResumableCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        module, data = stopping()
        module.make_scheduler = LINEAR
        watch = Rates()
        fit = trainer(tmp_path, callbacks=[watch, save, ReproducibleResume()], enable_checkpointing=True, max_epochs=4)
        fit.fit(module, datamodule=data, ckpt_path=resume)
        return watch.seen

    whole = run(None)
    assert sum(map(len, whole)) < 64
    assert run(tmp_path / "epoch=1.ckpt")[2:] == whole[2:]


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward", "ppo"])
def test_every_module_logs_the_rate_of_the_last_step_of_the_row(kind: str, tmp_path: Path) -> None:
    makers = {"sft": sft, "dpo": dpo, "reward": partial(reward, tmp_path), "ppo": ppo}
    module, data = makers[kind]()
    watch, _ = rates(tmp_path, module, data, LINEAR, callbacks=[MetricsFile()], max_epochs=2, log_every_n_steps=2)
    steps = [rate for epoch in watch.seen for rate in epoch]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rows = [line for line in lines if "train/loss" in line]
    assert len(rows) == (2 if kind == "ppo" else 5)
    assert [row["lr"] for row in rows] == pytest.approx([steps[row["step"] - 1] for row in rows])
    assert all("lr" not in line for line in lines if "train/loss" not in line)


def test_a_schedule_that_ends_with_the_run_needs_its_end(tmp_path: Path) -> None:
    module, data = sft()
    with pytest.raises(UserError, match=r"scheduler: .*trainer\.max_epochs=-1 has no end; give trainer\.max_steps"):
        rates(tmp_path, module, data, LINEAR, max_epochs=-1, max_time={"seconds": 5})
    constant = partial(get_constant_schedule_with_warmup, num_warmup_steps=2)
    watch, _ = rates(tmp_path, *sft(), constant, max_epochs=-1, max_steps=7)
    assert [rate for epoch in watch.seen for rate in epoch] == pytest.approx([0, 5e-4, *[1e-3] * 5])


@pytest.mark.parametrize(("warm_up", "warns"), [(9, False), (10, True), (500, True)])
def test_a_warm_up_as_long_as_the_run_is_told(
    warm_up: int, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rates(tmp_path, *sft(), partial(linear_schedule, num_warmup_steps=warm_up), max_epochs=2)
    said = f"scheduler.num_warmup_steps: found {warm_up}, and the run has 10 optimiser steps"
    assert (said in caplog.text) == warns


@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("limit", [1.0, 4, 0.5])
def test_the_last_window_of_an_epoch_counts_as_a_step_of_the_schedule(
    accumulate: int, limit: float, tmp_path: Path
) -> None:
    settings = {"accumulate_grad_batches": accumulate, "limit_train_batches": limit, "max_epochs": 3}
    watch, run = rates(tmp_path, *sft(), LINEAR, **settings)
    batches = 5 if limit == 1.0 else 4 if limit == 4 else 2
    assert [len(epoch) for epoch in watch.seen] == [math.ceil(batches / accumulate)] * 3
    assert run.optimizers[0].param_groups[0]["lr"] == 0
