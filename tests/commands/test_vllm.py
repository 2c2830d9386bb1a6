"""rollout=vllm in the commands: what is refused before anything is loaded, and a server that dies during a run."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import check
from rlhf_lightning.config.inputs import check_inputs
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.resuming import changes_meaning
from tests.commands.runs import write_model
from tests.programs import program
from tests.rollout.fake_vllm import serving

ROOT = Path(__file__).resolve().parents[2]
PPO = [
    "experiment=ppo",
    "model.path=gpt2",
    "data.train=org/name",
    "reward.function=rlhf_lightning.simulation.gold_reward",
]
SERVER = "rollout.server=http://localhost:8000"


def composed(*overrides: str) -> dict[str, Any]:
    return compose_config("train", [*PPO, *overrides])


@pytest.mark.parametrize(
    "overrides",
    [
        ["rollout=vllm"],
        ["rollout=vllm", SERVER],
        ["rollout=vllm", "rollout.engine_args={max_model_len: 64}", "rollout.sleep=true"],
        ["rollout=vllm", SERVER, "model/adapter=lora", "algorithm.importance_cap=2.0"],
    ],
)
def test_these_are_accepted(overrides):
    check(composed(*overrides))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rollout.engine=vllm"], r"rollout\.engine: its settings are another option: rollout=vllm"),
        (
            ["rollout=vllm", "rollout.server=localhost:8000"],
            r'rollout\.server: found "localhost:8000"; must be .*http',
        ),
        (
            ["rollout=vllm", "rollout.gpu_memory_utilization=1.5"],
            r"gpu_memory_utilization: found 1\.5; must be a number",
        ),
        (["rollout=vllm", "rollout.timeout=0"], r"rollout\.timeout: found 0; must be a number in \(0, 1e9\]"),
        (["rollout=vllm", "algorithm.importance_cap=0"], r"algorithm\.importance_cap: found 0"),
        (
            ["rollout=vllm", "model/adapter=lora", "model/quantization=nf4"],
            r"rollout\.engine: .*4-bit .*rollout=native, or model/quantization=none",
        ),
        (
            ["rollout=vllm", "model/adapter=lora", "model.adapter.use_dora=true"],
            r"model\.adapter\.use_dora: vLLM does not support DoRA; choose rollout=native",
        ),
        (["rollout=vllm", "algorithm.old_logprobs=engine"], r"algorithm\.old_logprobs: found engine.*=trainer"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(overrides, message):
    with pytest.raises(UserError, match=message):
        check(composed(*overrides))


def test_a_missing_vllm_is_told_at_once_and_not_to_those_who_use_a_server(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="vLLM is not installed here; pip install"):
        check_inputs(composed("rollout=vllm"))
    check_inputs(composed("rollout=vllm", SERVER))
    check_inputs(composed())


def test_another_server_is_the_same_run_and_other_arguments_of_the_engine_are_not():
    config = composed("rollout=vllm")
    for key, harmless in {
        "server": True,
        "sleep": True,
        "sync_dir": True,
        "timeout": True,
        "engine_args": False,
    }.items():
        assert changes_meaning(f"rollout.{key}", config, config) is not harmless
    assert changes_meaning("rollout.engine", config, config)


# ---- a server that dies


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(folder: Path, server: str, run: str, *further: str) -> subprocess.Popen[str]:
    command = [
        *(program("rlhf-train"), "experiment=ppo", "rollout=vllm", f"rollout.server={server}"),
        *(
            "model.path=base",
            "model/adapter=lora",
            "data.train=prompts.jsonl",
            f"run_dir={run}",
            "trainer.max_epochs=4",
        ),
        *("reward.function=tests.algorithms.conftest.count_early", "rollout.batch_size=8", "rollout.max_new_tokens=6"),
        *("optimizer.lr=0.01", "logger=none", "callbacks.progress=null", "trainer.accelerator=cpu"),
        *("+trainer.enable_progress_bar=false", *further),
    ]
    return subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def test_nothing_is_lost_when_a_server_dies_in_the_middle_of_a_run(tmp_path, monkeypatch):
    """The command ends with one line, and continues with another server to the same end."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    end_of = importlib.import_module("kill_resume").end_of
    write_model(tmp_path / "base")
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{a} b"}) + "\n" for a in "cdefghijkl"))
    with serving(tmp_path / "base") as healthy, serving(tmp_path / "base") as dying:
        dying.dies_at = 8 * 2 + 3  # in the third iteration
        whole, broken = start(tmp_path, healthy.address, "whole"), start(tmp_path, dying.address, "run")
        _, printed = broken.communicate(timeout=300)
        assert broken.returncode == 2, printed
        assert printed.splitlines()[-1].startswith(f"error: rollout.server: {dying.address} does not answer POST")
        assert printed.endswith("start it again, then go on with ckpt=last\n")
        _, printed = whole.communicate(timeout=300)
        assert whole.returncode == 0, printed
        assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
        checkpoint = hashlib.sha256((tmp_path / "run/checkpoints/last.ckpt").read_bytes()).hexdigest()
        manifest = (tmp_path / "run/checkpoints/last.ckpt.manifest.json").read_text()
        assert checkpoint in manifest
        resumed = start(tmp_path, healthy.address, "run", "ckpt=last")
        _, printed = resumed.communicate(timeout=300)
        assert resumed.returncode == 0, printed
        assert f"resume: rollout.server: {dying.address} -> {healthy.address}" in printed
    end = end_of(tmp_path / "run")
    assert len(end["metrics.jsonl"]) == 4
    assert max(row["rollout/logprob_gap_max"] for row in end["metrics.jsonl"]) < 1e-4
    assert end == end_of(tmp_path / "whole")
