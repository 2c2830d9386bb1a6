"""Every kind of run on a pretended CUDA device: nothing mixes devices, and each wait for the device has its reason."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ compiles what pretends to be a CUDA device")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each scenario reports; torch learns of a device once, so they have a process of their own."""
    folder = tmp_path_factory.mktemp("devices")
    command = [sys.executable, "-m", "tests.devices.scenarios", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


MODULES = [
    "sft",
    "sft_lora",
    "new_score_head",
    "new_score_head_lora",
    "dpo",
    "dpo_lora",
    "dpo_precomputed",
    "ppo_separate",
    "ppo_shared_lora",
    "ppo_in_parts",
    "ppo_scored_by_models",
    "ppo_deterministic",
]
OTHERS = ["resumed", "engine", "evaluation"]


@pytest.mark.parametrize("name", MODULES)
def test_every_module_trains_on_the_device(results: dict[str, Any], name: str) -> None:
    assert results[name]["error"] is None, results[name]["error"]
    assert results[name]["on"] == "cuda:0"


@pytest.mark.parametrize("name", OTHERS)
def test_what_comes_around_training_runs_on_the_device(results: dict[str, Any], name: str) -> None:
    assert results[name]["error"] is None, results[name]["error"]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(results: dict[str, Any]) -> None:
    assert results["resumed"]["equal"]


def test_a_policy_is_at_no_distance_from_itself(results: dict[str, Any]) -> None:
    assert results["evaluation"]["kl"] == 0.0
