"""Every kind of run on a pretended CUDA device: nothing mixes devices, and each wait for the device has a reason."""

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


def run_scenarios(folder: Path, *names: str) -> dict[str, Any]:
    """Return each scenario's report, from a separate process because torch learns of a device only once."""
    command = [sys.executable, "-m", "tests.devices.scenarios", str(folder), *names]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


MODULES = [
    "sft",
    "sft_lora",
    "new_score_head",
    "process_reward_lora",
    "dpo_lora",
    "dpo_precomputed",
    "orpo_lora",
    "kto_lora",
    "ilql_lora",
    "gkd_lora",
    "ppo_separate",
    "ppo_shared_lora",
    "ppo_deterministic",
    "grpo",
]
OTHERS = ["resumed", "engine", "commands"]
MORE = ["new_score_head_lora", "dpo", "ppo_in_parts"]
OTHER_ALGORITHMS = [
    "simpo_lora",
    "cpo_lora",
    "dapo",
    "online_dpo",
    "raft",
    "gspo",
    "cispo",
    "nlpo",
    "ppo_lagrangian",
    "cost",
]

# Every line of the package at which a step, an iteration or a decoded token may wait for the device, and why.
JUSTIFIED = {
    "kernels/packing.py:pack": "which tokens rows share is found out on the host: once per forward pass",
    "models/forward.py:right_padded": "rows are cut to the longest one: once per forward pass over a rollout",
    "models/forward.py:hidden_at": "the shape of rows that are not packed: once per such forward pass",
    "models/forward.py:hidden_states": "transformers looks for packed rows: once per forward pass that is not packed",
    "callbacks/guardrails.py:on_before_optimizer_step": "a loss that is not finite must not reach the weights",
    "callbacks/last_loss.py:look": "weights whose last loss has blown up are not saved: once per checkpoint",
    "callbacks/instruments.py:_total": "tokens and operations, once per record",
    "algorithms/process_reward.py:steps": "how many steps a batch has: once per batch",
    "algorithms/reward.py:_record": "pairs that only keep a process in step do not count: once per batch",
    "algorithms/offline.py:reference_logps": "which rows of the table the batch is: once per batch",
    "experience/score_checks.py:check_scale": "scores beyond use must not reach the weights: once per iteration",
    "experience/stopwatch.py:now": "the time of a phase ends when the device has ended it",
    "training/weighted_mean.py:on_host": "all metrics at once, when they are logged",
    "experience/scorer.py:__call__": "which responses ended, for the reward",
    "algorithms/iterations.py:training_step": "target_kl decides on the host whether updates go on: once per minibatch",
    "experience/statistics.py:samples": "the numbers of the sample table, at once",
    "experience/reward_shaping.py:update": "running moments are the host's: mean and variance, once per iteration",
    "rewards/model.py:_score": "the scores of a batch of responses",
    "rollout/engine.py:token_rows": "the texts of all responses, at once: for the reward and for the sample table",
    "rollout/loader.py:__iter__": "tokens of every response, once per iteration",
    "rollout/microbatches.py:rows_by_tokens": "lengths decide which rows are computed together: once per minibatch",
    "rollout/native.py:_look": "which rows have ended: once in LOOK_EVERY tokens, and where a row is full",
    "rollout/native.py:_states": "transformers looks at the mask of prompts: once per prompt pass",
}
STEPS = {
    "sft": 2,
    "sft_lora": 2,
    "new_score_head": 3,
    "new_score_head_lora": 3,
    "process_reward_lora": 3,
    "dpo": 3,
    "dpo_lora": 3,
    "dpo_precomputed": 3,
    "orpo_lora": 3,
    "kto_lora": 5,
    "ilql_lora": 2,
    "ppo_separate": 4,
    "ppo_shared_lora": 4,
    "ppo_in_parts": 4,
}
# 5 of an iteration's waits come from the last loss, which is recomputed when the weights are saved.
ITERATIONS = {"ppo_separate": 51, "ppo_shared_lora": 44, "ppo_in_parts": 40}
PER_TOKEN = 0.1  # with 24 responses in 8 slots


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_scenarios(tmp_path_factory.mktemp("devices"), *MODULES, *OTHERS)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_trains_on_the_device(results: dict[str, Any], name: str) -> None:
    assert results[name]["error"] is None, results[name]["error"]
    assert results[name]["on"] == "cuda:0"


@pytest.mark.parametrize("name", OTHERS)
def test_what_comes_around_training_runs_on_the_device(results: dict[str, Any], name: str) -> None:
    assert results[name]["error"] is None, results[name]["error"]


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(results: dict[str, Any]) -> None:
    assert results["resumed"]["equal"]


def ended_well(run: dict[str, Any]) -> None:
    """Check that a command did its work on the device; an export does not need one."""
    assert run["code"] == 0, (run["words"], run["errors"][-2000:])
    assert (run["operations"] == 0) == (run["words"][0] == "rlhf-export"), run["words"]


def test_every_command_runs_on_the_device(results: dict[str, Any]) -> None:
    runs = results["commands"]["runs"]
    assert [run["words"][0] for run in runs] == ["rlhf-pipeline", "rlhf-evaluate", "rlhf-chat", "rlhf-export"]
    for run in runs:
        ended_well(run)
    assert results["commands"]["evaluated"]["b.kl"] == 0.0  # of a policy to itself


def test_more_devices_than_there_are_is_one_line(results: dict[str, Any]) -> None:
    refused = results["commands"]["refused"]
    assert refused["code"] == 2
    assert "found gpu and 2" in refused["errors"] and "torch sees 1 GPU here" in refused["errors"]


def within(waits: list[list[Any]], budget: float) -> None:
    """Check that every wait is at a justified line, and that together they are within the budget."""
    assert not [wait for wait in waits if wait[2] not in JUSTIFIED]
    assert 0 < sum(times for *_, times in waits) <= budget, waits


@pytest.mark.parametrize("name", [name for name in MODULES if name in STEPS])
def test_a_step_waits_for_the_device_no_more_than_it_must(results: dict[str, Any], name: str) -> None:
    within(results[name]["step"], STEPS[name])


@pytest.mark.parametrize("name", ["ppo_separate", "ppo_shared_lora"])
def test_an_iteration_waits_for_the_device_no_more_than_it_must(results: dict[str, Any], name: str) -> None:
    within(results[name]["iteration"], ITERATIONS[name])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_samples_do_not_depend_on_how_often_the_host_looks(results: dict[str, Any], family: str) -> None:
    found = results["engine"][family]
    within(found["waits"], PER_TOKEN * found["tokens"])
    assert 0 < found["ended"] < 24  # some end by EOS, some by length, and slots are reused
    assert found["same"]


@pytest.mark.slow
def test_more_kinds_of_runs(tmp_path: Path) -> None:
    results = run_scenarios(tmp_path, *MORE)
    for name in MORE:
        assert results[name]["error"] is None, results[name]["error"]
        assert results[name]["on"] == "cuda:0"
        within(results[name]["step"], STEPS[name])
    within(results["ppo_in_parts"]["iteration"], ITERATIONS["ppo_in_parts"])


@pytest.mark.slow
def test_the_other_algorithms(tmp_path: Path) -> None:
    results = run_scenarios(tmp_path, *OTHER_ALGORITHMS)
    assert list(results) == OTHER_ALGORITHMS
    for found in results.values():
        assert found["error"] is None, found["error"]
        assert found["on"] == "cuda:0"


@pytest.mark.slow
def test_more_commands(tmp_path: Path) -> None:
    """Every stage in every precision, of other families, with adapters, and resumed."""
    found = run_scenarios(tmp_path, "more_commands")["more_commands"]
    assert found["error"] is None, found["error"]
    for run in found["runs"]:
        ended_well(run)
