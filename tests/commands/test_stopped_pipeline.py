"""A pipeline that is stopped between two stages, and again in its evaluation, ends like an uninterrupted one."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.programs import ENVIRONMENT, program

# User code that stops the process, once each: when the second stage is built, and when answers are scored.
STOPPER = """
import os, signal
from pathlib import Path

from lightning.pytorch import Callback
from rlhf_lightning.simulation import gold_reward


def stop_once(where):
    if Path("stops").exists() and not Path(where).exists():
        Path(where).touch()
        os.kill(os.getpid(), signal.SIGTERM)


class StopsWhenBuilt(Callback):
    def __init__(self):
        stop_once("between the stages")


def gold(prompts, responses, **columns):
    stop_once("in the evaluation")
    return gold_reward(prompts, responses)
"""
WORDS = [
    *("pipeline=demo", "~stages.reward", "~stages.dpo", "logger=none", "evaluation.gold=stopper.gold"),
    *("evaluation.proxy=null", "evaluation.max_new_tokens=8", "+prepare.n_train_prompts=24"),
    *("+prepare.n_test_prompts=6", "+prepare.demonstrations_per_prompt=1", "stages.sft.trainer.max_epochs=1"),
    *("stages.ppo.reward_from=null", "stages.ppo.reward.model=null", "stages.ppo.rollout.batch_size=8"),
    *("stages.ppo.reward.function=rlhf_lightning.simulation.gold_reward", "stages.ppo.rollout.max_new_tokens=8"),
    *("stages.ppo.algorithm.num_minibatches=1", "stages.ppo.trainer.max_epochs=2"),
    "+stages.ppo.callbacks.stops._target_=stopper.StopsWhenBuilt",
]


def pipeline(folder: Path, *more: str) -> tuple[int, str]:
    """Return its exit code, and the last line on standard error."""
    done = subprocess.run(
        [program("rlhf-pipeline"), *WORDS, *more],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, (done.stderr.splitlines() or [""])[-1]


def summary(folder: Path) -> dict[str, Any]:
    return {
        key: value for key, value in json.loads((folder / "summary.json").read_text()).items() if "_second" not in key
    }


@pytest.mark.slow
def test_a_pipeline_stopped_between_stages_and_in_its_evaluation_ends_as_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "stopper.py").write_text(STOPPER)
    assert pipeline(tmp_path, "run_dir=whole") == (0, "")
    (tmp_path / "stops").touch()
    go_on = "stopped by SIGTERM; go on with the same command with "
    assert pipeline(tmp_path, "run_dir=stopped") == (143, f"{go_on}from=ppo run_dir=stopped")
    assert not (tmp_path / "stopped/ppo").exists()
    assert pipeline(tmp_path, "from=ppo", "run_dir=stopped") == (
        143,
        f"{go_on}from=ppo stages.ppo.ckpt=last run_dir=stopped",
    )
    assert not (tmp_path / "stopped/summary.json").exists()
    code, said = pipeline(tmp_path, "from=ppo", "stages.ppo.ckpt=last", "run_dir=stopped")
    assert code == 0, said
    assert summary(tmp_path / "stopped") == summary(tmp_path / "whole")
