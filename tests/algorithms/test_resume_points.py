"""Where checkpoints are saved, and that a run resumed from any of them ends bitwise like an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from rlhf_lightning.callbacks import (
    DurableCheckpointIO,
    Instruments,
    MetricsFile,
    ReproducibleResume,
    ResumableCheckpoint,
    StopOnSigterm,
)
from rlhf_lightning.durable import read_manifest, what_is_broken
from rlhf_lightning.errors import Terminated
from rlhf_lightning.models import fingerprint
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer
from tests.tiny import tiny_model

DROPOUT = partial(tiny_model, "gpt2", dropout=0.2)
CONSTANT = partial(get_constant_schedule_with_warmup, num_warmup_steps=2)
LINEAR = partial(get_linear_schedule_with_warmup, num_warmup_steps=2)


class Keep(ResumableCheckpoint):
    """Keeps every checkpoint as `<step>.ckpt`, with the content of metrics.jsonl when it was saved."""

    def _save_checkpoint(self, trainer: Any, filepath: str) -> None:
        filepath = str(Path(filepath).with_name(f"{trainer.global_step}.ckpt"))
        super()._save_checkpoint(trainer, filepath)
        lines = Path(trainer.default_root_dir) / "metrics.jsonl"
        Path(filepath).with_suffix(".jsonl").write_bytes(lines.read_bytes() if lines.exists() else b"")


class Kill(Callback):
    """Sends SIGTERM to this process when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def run(folder: Path, resume: Path | None = None, kind: str = "sft", **settings: Any) -> Any:
    """Run 3 epochs of 5 batches; for PPO, 3 iterations of 16 steps."""
    save: dict[str, Any] = settings.pop("save", {"every_n_epochs": 1})
    further: list[Callback] = settings.pop("callbacks", [])
    makers = {"ppo": ppo, "dpo": dpo, "reward": partial(reward, folder), "sft": partial(sft, DROPOUT)}
    module, data = makers[kind]()
    module.make_scheduler = settings.pop("scheduler", LINEAR)
    torch.manual_seed(9)
    callbacks = [
        Keep(folder / "checkpoints", save_top_k=0, save_last=True, save_on_train_epoch_end=True, **save),
        *(MetricsFile(), ReproducibleResume(), StopOnSigterm(), Instruments(), *further),
    ]
    chosen = {"max_epochs": 3, "log_every_n_steps": 2, **settings}
    fit = trainer(folder, enable_checkpointing=True, plugins=[DurableCheckpointIO()], callbacks=callbacks, **chosen)
    fit.fit(module, datamodule=data, ckpt_path=resume)
    return fit


def end(fit: Any) -> dict[str, Any]:
    """Return what must be equal: weights, lines, and the metrics of the summary."""
    lines = [json.loads(line) for line in (Path(fit.default_root_dir) / "metrics.jsonl").read_text().splitlines()]
    metrics = {name: float(value) for name, value in fit.callback_metrics.items()}
    skipped = ("time/", "perf/", "tokens_per_second")
    network = getattr(fit.lightning_module, "policy", fit.lightning_module.model)
    return {
        "weights": fingerprint(network),
        "lines": [{k: v for k, v in line.items() if not any(s in k for s in skipped)} for line in lines],
        "metrics": {k: v for k, v in metrics.items() if not any(s in k for s in skipped)},
    }


def steps(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "checkpoints").glob("*.ckpt"))


EVERY_STEP = {"every_n_train_steps": 1}
LONG = ("validations counted over epochs",)
CASES = {
    "every epoch": ({}, [5, 10, 15]),
    "every step": ({"save": EVERY_STEP}, [*range(1, 16)]),
    "every second step": ({"save": {"every_n_train_steps": 2}}, [2, 4, 6, 8, 10, 12, 14]),
    "no step while gradients accumulate": ({"save": EVERY_STEP, "accumulate_grad_batches": 2}, [*range(1, 10)]),
    "not before a validation, but soon after": (
        {"save": {"every_n_train_steps": 3}, "val_check_interval": 3},
        [4, 6, 9, 12, 15],
    ),
    "validations counted over epochs": (
        {"save": EVERY_STEP, "val_check_interval": 4, "check_val_every_n_epoch": None},
        [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15],
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.slow if case in LONG else ()) for case in CASES])
def test_a_run_resumed_from_any_of_its_checkpoints_ends_bitwise_the_same(case: str, tmp_path: Path) -> None:
    settings, saved = CASES[case]
    whole = run(tmp_path, **settings)
    assert steps(tmp_path) == saved
    expected = end(whole)
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    for step in saved[:: max(1, len(saved) // 4)]:
        path = tmp_path / "checkpoints" / f"{step}.ckpt"
        # Killed right after the save, and at the very end.
        for left in (path.with_suffix(".jsonl").read_bytes() + b'{"step": 1, "ha', lines):
            (tmp_path / "metrics.jsonl").write_bytes(left)
            torch.manual_seed(1234)  # another process has other random states
            assert end(run(tmp_path, path, **settings)) == expected, f"from step {step}"


class Stop(Callback):
    """Asks the trainer to stop after a batch, as `max_time` does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not trainer.is_last_batch:
            trainer.should_stop = True


CUTS: dict[str, tuple[dict[str, Any], dict[str, int], list[int]]] = {
    "max_steps within an epoch": ({}, {"max_steps": 7}, [5, 7]),
    "max_steps at an epoch's end": ({}, {"max_steps": 10}, [5, 10]),
    "max_steps with accumulation": ({"accumulate_grad_batches": 2}, {"max_steps": 4}, [3, 4]),
    "max_steps where a validation is due": ({"val_check_interval": 2}, {"max_steps": 7}, [5, 7]),
    "a stop": ({}, {"stop": 7}, [5, 7]),
    "a stop while gradients accumulate": ({"accumulate_grad_batches": 2}, {"stop": 3}, [3, 4]),
    "max_steps within an iteration": ({"kind": "ppo"}, {"max_steps": 20}, [16]),
    "max_steps at an iteration's end": ({"kind": "ppo"}, {"max_steps": 32}, [16, 32]),
    "a stop within an iteration": ({"kind": "ppo"}, {"stop": 20}, [16]),
}


@pytest.mark.parametrize("case", CUTS)
def test_a_run_that_ended_within_an_epoch_goes_on_there(case: str, tmp_path: Path) -> None:
    """Lightning would take the epoch for complete. An iteration of PPO, which cannot be resumed within, is repeated."""
    settings, limit, saved = CUTS[case]
    settings = {**settings, "scheduler": CONSTANT}  # a schedule spans `max_steps`
    expected = end(run(tmp_path / "whole", **settings))
    cut = {name: value for name, value in limit.items() if name != "stop"}
    run(tmp_path / "cut", **settings, **cut, callbacks=[Stop(limit["stop"])] if "stop" in limit else [])
    assert steps(tmp_path / "cut") == saved
    found = end(run(tmp_path / "cut", tmp_path / f"cut/checkpoints/{saved[-1]}.ckpt", **settings))
    if "val_check_interval" in settings:  # the validation that was due after the last step belonged to the cut run
        assert found["weights"] == expected["weights"]
    else:
        assert found == expected


@pytest.mark.parametrize(("kind", "limit", "first"), [("sft", 12, 5), ("ppo", 40, 16)])
def test_a_run_with_a_limit_on_steps_is_resumed_from_the_end_of_an_epoch(
    kind: str, limit: int, first: int, tmp_path: Path
) -> None:
    """Lightning alone would skip the next epoch."""
    expected = end(run(tmp_path, kind=kind, max_steps=limit))
    path = tmp_path / "checkpoints" / f"{first}.ckpt"
    (tmp_path / "metrics.jsonl").write_bytes(path.with_suffix(".jsonl").read_bytes())
    resumed = run(tmp_path, path, kind=kind, max_steps=limit)
    assert end(resumed) == expected
    assert resumed.max_steps == limit


def test_an_iteration_that_ends_before_it_is_done_leaves_no_checkpoint(tmp_path: Path) -> None:
    run(tmp_path, kind="ppo", max_steps=3)
    assert steps(tmp_path) == []


class Earliest(Callback):
    """Records a maximum besides the means: that of a window's first step."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        pl_module.record_max("train/earliest", torch.tensor(-float(trainer.global_step)))


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_a_row_does_not_depend_on_a_resume_within_its_window(kind: str, tmp_path: Path) -> None:
    """Rows of 4 steps in epochs of 5, cut after the second and the first step of a window."""
    settings: dict[str, Any] = {"kind": kind, "save": EVERY_STEP, "log_every_n_steps": 4}
    expected = end(run(tmp_path, callbacks=[Earliest()], **settings))
    assert [line["step"] for line in expected["lines"] if "train/loss" in line] == [4, 8, 12]
    assert [line["train/earliest"] for line in expected["lines"] if "train/loss" in line] == [-1.0, -5.0, -9.0]
    for step in (6, 13):
        path = tmp_path / "checkpoints" / f"{step}.ckpt"
        (tmp_path / "metrics.jsonl").write_bytes(path.with_suffix(".jsonl").read_bytes())
        assert end(run(tmp_path, path, callbacks=[Earliest()], **settings)) == expected, f"from step {step}"


def test_an_iteration_of_ppo_is_resumed_with_its_line(tmp_path: Path) -> None:
    expected = end(run(tmp_path, kind="ppo"))
    assert len(expected["lines"]) == 3
    for step in steps(tmp_path):
        path = tmp_path / "checkpoints" / f"{step}.ckpt"
        (tmp_path / "metrics.jsonl").write_bytes(path.with_suffix(".jsonl").read_bytes())
        assert end(run(tmp_path, path, kind="ppo")) == expected


def test_every_checkpoint_has_a_manifest_with_its_step(tmp_path: Path) -> None:
    run(tmp_path, max_epochs=1)
    path = tmp_path / "checkpoints/5.ckpt"
    assert what_is_broken(path) is None
    assert [(entry["epoch"], entry["global_step"]) for entry in read_manifest(path)] == [(0, 5)]


@pytest.mark.parametrize("step", [2, 4, 8])
def test_sigterm_saves_after_the_step_and_the_resumed_run_is_the_same(step: int, tmp_path: Path) -> None:
    """Steps 0 to 4 are an epoch: at its last batch the run continues, to the first batch of the next one."""
    expected = end(run(tmp_path / "whole"))
    former = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated) as stopped:
        run(tmp_path / "cut", callbacks=[Kill(step)])
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is former
    at = {2: 3, 4: 6, 8: 9}[step]
    (saved,) = read_manifest(tmp_path / "cut/checkpoints/last.ckpt")
    assert saved["global_step"] == at
    assert end(run(tmp_path / "cut", tmp_path / "cut/checkpoints/last.ckpt")) == expected


def test_sigterm_lets_an_accumulation_end(tmp_path: Path) -> None:
    expected = end(run(tmp_path / "whole", accumulate_grad_batches=2))
    with pytest.raises(Terminated):
        run(tmp_path / "cut", callbacks=[Kill(1)], accumulate_grad_batches=2)  # in the first of two batches
    last = tmp_path / "cut/checkpoints/last.ckpt"
    assert read_manifest(last)[0]["global_step"] == 2
    assert end(run(tmp_path / "cut", last, accumulate_grad_batches=2)) == expected


def test_sigterm_stops_ppo_at_once_and_leaves_the_last_iteration(tmp_path: Path) -> None:
    expected = end(run(tmp_path / "whole", kind="ppo"))
    kill = Kill(20)
    with pytest.raises(Terminated):
        run(tmp_path / "cut", kind="ppo", callbacks=[kill])
    assert steps(tmp_path / "cut") == [16]
    assert end(run(tmp_path / "cut", tmp_path / "cut/checkpoints/16.ckpt", kind="ppo")) == expected


def test_sigterm_in_the_last_epoch_ends_the_run_with_its_last_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Terminated):
        run(tmp_path, callbacks=[Kill(14)])
    assert steps(tmp_path) == [5, 10, 15]


class Rates(Callback):
    """Records the learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.mark.parametrize("scheduler", [None, LINEAR])
def test_a_resumed_run_takes_the_learning_rate_of_its_config(scheduler: Any, tmp_path: Path) -> None:
    def rates(rate: float, resume: Path | None) -> list[float]:
        module, data = sft()
        module.make_optimizer, module.make_scheduler = partial(torch.optim.SGD, lr=rate), scheduler
        watch = Rates()
        callbacks = [Keep(tmp_path, save_top_k=0, save_last=True), ReproducibleResume(), watch]
        trainer(tmp_path, enable_checkpointing=True, callbacks=callbacks, max_epochs=2).fit(
            module, datamodule=data, ckpt_path=resume
        )
        return watch.seen

    whole = rates(0.1, None)
    assert rates(0.05, tmp_path / "5.ckpt") == pytest.approx([rate / 2 for rate in whole[5:]])
