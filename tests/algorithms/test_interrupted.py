"""Anything may save a checkpoint, at any moment: a run resumes from it exactly, or says that it cannot."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from rlhf_lightning.callbacks import DurableCheckpointIO, ReproducibleResume, ResumableCheckpoint, StopOnSigterm
from rlhf_lightning.durable import read_manifest, why_not_resumed
from rlhf_lightning.errors import Terminated, UserError
from rlhf_lightning.models import fingerprint
from tests.algorithms.conftest import ppo, sft, trainer

HOOKS = (
    *("on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end", "on_validation_start", "on_validation_end"),
    *("on_train_epoch_end", "on_train_end"),
)
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"val_check_interval": 2},
    "accumulating": {"accumulate_grad_batches": 2},
    "ppo": {},
}
EXACT = {  # (hook, how often it was called) where a run does resume exactly
    "sft": {
        *(("on_train_start", 1), ("on_train_epoch_start", 1)),
        *(("on_train_batch_end", n) for n in range(1, 11)),
        *((hook, n) for hook in ("on_validation_start", "on_validation_end") for n in range(1, 5)),
        *(("on_train_epoch_end", n) for n in (1, 2)),
        ("on_train_end", 1),
    },
    "accumulating": {
        *(("on_train_start", 1), ("on_train_epoch_start", 1)),
        *(("on_train_batch_end", n) for n in (2, 4, 5, 7, 9, 10)),
        *((hook, n) for hook in ("on_validation_start", "on_validation_end", "on_train_epoch_end") for n in (1, 2)),
        ("on_train_end", 1),
    },
    "ppo": {("on_train_start", 1), ("on_train_epoch_start", 1), ("on_train_end", 1)},
}


class SaveEverywhere(Callback):
    """Saves in every hook, as `<hook>-<how often>.ckpt`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts = folder, dict.fromkeys(HOOKS, 0)

    def save(self, hook: str, trainer: Any) -> None:
        self.counts[hook] += 1
        trainer.save_checkpoint(self.folder / f"{hook}-{self.counts[hook]}.ckpt")


for hook in HOOKS:
    setattr(SaveEverywhere, hook, lambda self, trainer, *args, hook=hook, **kwargs: self.save(hook, trainer))


def run(folder: Path, kind: str, *callbacks: Callback, resume: Path | None = None, epochs: int = 2) -> Any:
    module, data = ppo() if kind == "ppo" else sft()
    torch.manual_seed(9)
    settings = {
        "max_epochs": epochs,
        "enable_checkpointing": True,
        "plugins": [DurableCheckpointIO()],
        **SETTINGS[kind],
    }
    last = ResumableCheckpoint(
        folder / "checkpoints", save_top_k=0, save_last=True, save_on_train_epoch_end=True, save_on_exception=True
    )
    trainer(folder, callbacks=[*callbacks, ReproducibleResume(), last], **settings).fit(
        module, datamodule=data, ckpt_path=resume
    )
    return module


def weights(module: Any) -> str:
    return fingerprint(module.policy if hasattr(module, "policy") else module.model)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, str]]:
    """Return the folder with the checkpoints of a run of each kind, and its final weights."""

    @functools.cache
    def saved(kind: str) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(kind)
        return folder, weights(run(folder, kind, SaveEverywhere(folder)))

    return saved


@pytest.mark.parametrize("kind", SETTINGS)
def test_in_every_hook_a_checkpoint_says_whether_a_run_resumes_from_it(kind: str, saved: Any) -> None:
    files = {path: path.stem.rsplit("-", 1) for path in saved(kind)[0].glob("on_*.ckpt")}
    exact = {(hook, int(n)) for path, (hook, n) in files.items() if why_not_resumed(path) is None}
    assert exact == EXACT[kind]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("sft", "on_validation_end-1"), ("sft", "on_train_batch_end-3"), ("accumulating", "on_train_batch_end-2")],
)
def test_where_it_says_so_the_resumed_run_is_the_same(kind: str, name: str, saved: Any, tmp_path: Path) -> None:
    folder, end = saved(kind)
    assert weights(run(tmp_path, kind, resume=folder / f"{name}.ckpt")) == end


@pytest.mark.parametrize(
    ("kind", "name", "reason"),
    [
        ("ppo", "on_train_batch_end-5", "within an iteration, whose rollout"),
        ("ppo", "on_train_epoch_end-1", "within an iteration"),  # before the KL controller reacts
        ("ppo", "on_train_epoch_start-2", "within the start of an epoch"),
        ("sft", "on_after_backward-3", "within a step"),
        ("sft", "on_train_batch_start-3", "within a step"),
        ("sft", "on_train_epoch_start-2", "within the start of an epoch"),
        ("accumulating", "on_train_batch_end-3", "within the accumulation of gradients"),
    ],
)
def test_where_it_does_not_the_run_is_refused(kind: str, name: str, reason: str, saved: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^ckpt: it was saved {reason}"):
        run(tmp_path, kind, resume=saved(kind)[0] / f"{name}.ckpt")


class Fail(Callback):
    """Raises in the third batch of the second epoch."""

    def on_before_backward(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.fit_loop.epoch_loop.batch_idx == 2:
            raise RuntimeError("out of luck")


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_an_exception_leaves_the_last_good_checkpoint(kind: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", kind)
    on_exception = OnExceptionCheckpoint(tmp_path, "exception")
    on_exception.teardown = lambda *args, **kwargs: None  # type: ignore[method-assign]  # it would remove its file
    with pytest.raises(RuntimeError, match="out of luck"):
        run(tmp_path, kind, Fail(), on_exception)
    assert why_not_resumed(tmp_path / "exception.ckpt") is not None
    last = tmp_path / "checkpoints/last.ckpt"
    assert why_not_resumed(last) is None
    assert weights(run(tmp_path / "again", kind, resume=last)) == weights(whole)


def test_a_checkpoint_of_weights_alone_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "sft", ModelCheckpoint(tmp_path, filename="weights", save_weights_only=True), epochs=1)
    with pytest.raises(UserError, match=r"^ckpt: it holds the weights alone"):
        run(tmp_path / "again", "sft", resume=tmp_path / "weights.ckpt")
    read = DurableCheckpointIO().load_checkpoint(tmp_path / "weights.ckpt")  # like a validation
    assert "optimizer_states" not in read and read["state_dict"]


class Warn(Callback):
    """Sends SLURM's warning in the third step of the second epoch."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.current_epoch == 1 and trainer.fit_loop.epoch_loop.batch_idx == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.mark.parametrize("kind", ["sft", "ppo"])
def test_slurms_warning_saves_where_a_run_resumes_exactly_and_queues_the_job_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tmp_path / "whole", kind)
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\n")
    scontrol.chmod(0o755)
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_ID": "4711"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    former = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(Terminated):
        run(tmp_path, kind, Warn(), StopOnSigterm())
    assert signal.getsignal(signal.SIGUSR1) is former
    assert (tmp_path / "asked").read_text() == "requeue 4711\n"
    assert not list(tmp_path.glob("hpc_ckpt*"))
    last = tmp_path / "checkpoints/last.ckpt"
    steps = {"sft": 8, "ppo": 16}
    assert read_manifest(last)[0]["global_step"] == steps[kind]
    assert weights(run(tmp_path / "again", kind, resume=last)) == weights(whole)
