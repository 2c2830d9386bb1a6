"""Rounds that are killed while labelers answer, and again in PPO, end like uninterrupted ones."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ENVIRONMENT, program

# User code that kills the process, once each: after three answers of round 1, and in PPO of round 2.
KILLER = """
import os, signal
from pathlib import Path

from lightning.pytorch import Callback
from rlhf_lightning.feedback import FeedbackStore
from rlhf_lightning.simulation import label_by_simulation

record = FeedbackStore.record


def kill_once(where):
    if Path("kills").exists() and not Path(where).exists():
        Path(where).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def label(folder, store, labelers, seed=0):
    count = iter(range(10**6))

    def record_and_die(*arguments, **named):
        found = record(*arguments, **named)
        if next(count) == 2:
            kill_once("while labelling")
        return found

    FeedbackStore.record = record_and_die
    return label_by_simulation(folder, store, labelers, seed)


class DiesInPPO(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            kill_once("in PPO")
"""
WORDS = [
    *("pipeline=rounds", "rounds=2", "logger=none", "+prepare.n_train_prompts=24", "+prepare.n_test_prompts=6"),
    *("+prepare.demonstrations_per_prompt=1", "+prepare.pairs_per_prompt=1", "stages.sft.trainer.max_epochs=1"),
    *("round.collect.call.limit=4", "round.collect.call.max_new_tokens=8", "round.label.call._target_=killer.label"),
    *("round.reward.trainer.max_epochs=1", "round.ppo.rollout.batch_size=8", "round.ppo.rollout.max_new_tokens=8"),
    *("round.ppo.algorithm.num_minibatches=1", "round.ppo.trainer.max_epochs=2", "evaluation.max_new_tokens=8"),
    *("evaluation.samples_per_prompt=1", "+stages.ppo_2.callbacks.dies._target_=killer.DiesInPPO"),
]


def pipeline(folder: Path, run_dir: str) -> int:
    command = [program("rlhf-pipeline"), *WORDS, f"run_dir={run_dir}"]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).returncode


def left(folder: Path) -> dict[str, Any]:
    """Return a pipeline's results: metrics without seconds, labels, and the policies' weights."""
    figures = json.loads((folder / "summary.json").read_text())
    made: dict[str, Any] = {key: value for key, value in figures.items() if "_second" not in key}
    files = [*folder.glob("export_*/*.jsonl"), *folder.glob("*/model/*.safetensors")]
    return made | {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.slow
def test_rounds_that_are_killed_go_on_by_the_same_command_and_end_as_whole_ones(tmp_path: Path) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    assert pipeline(tmp_path, "whole") == 0
    (tmp_path / "kills").touch()
    assert pipeline(tmp_path, "killed") == -9
    first = (tmp_path / "killed/sft/summary.json").stat().st_mtime_ns
    assert pipeline(tmp_path, "killed") == -9
    assert pipeline(tmp_path, "killed") == 0
    assert (tmp_path / "in PPO").exists() and (tmp_path / "while labelling").exists()
    assert (tmp_path / "killed/sft/summary.json").stat().st_mtime_ns == first
    assert left(tmp_path / "killed") == left(tmp_path / "whole")
