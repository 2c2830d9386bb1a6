"""The engines with real vLLM, on CPU: `make test-vllm` installs it in a separate environment and runs these."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from copy import deepcopy
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.models import LoRA, load_causal_lm, response_logprobs
from rlhf_lightning.rollout import SamplingSettings, VLLMEngine, VLLMRollout, VLLMServer, make_engine, seeded_generator
from tests.programs import program
from tests.rollout.test_vllm_server import GREEDY, PROMPTS, assert_follows, rows
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")
ROOT = Path(__file__).resolve().parents[2]
EAGER = {"enforce_eager": True, "max_model_len": 128}
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a random Llama with heads of 32, the smallest that vLLM's CPU attention accepts."""
    folder = tmp_path_factory.mktemp("real") / "base"
    tiny_model(hidden=128).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    (folder.parent / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"{a} b"}) + "\n" for a in "cdefghijkl"))
    os.environ.update(ENVIRONMENT)
    return folder


def serve(base: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start a server and wait until it answers. The `vllm` command of vllm-cpu looks for a package `vllm` and fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(base),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128", "--enable-lora", *arguments]
    flags = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with (base.parent / "server.log").open("wb") as log:
        running = subprocess.Popen(command, env=os.environ | flags, stdout=log, stderr=subprocess.STDOUT)
    end = time.monotonic() + 400
    while time.monotonic() < end and running.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return running, f"http://127.0.0.1:{port}"
        except OSError:
            time.sleep(1.0)
    running.kill()
    raise RuntimeError((base.parent / "server.log").read_text()[-3000:])


@pytest.fixture(scope="module", params=[False, True], ids=["all weights", "adapter"])
def adapter(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def server(base: Path, adapter: bool) -> Iterator[str]:
    """Run one per kind of weights: a server that received all weights keeps them, but adapters need the first."""
    running, address = serve(base, "--logprobs-mode", "processed_logprobs")
    yield address
    running.terminate()
    running.wait(timeout=60)


def load(base: Path, adapter: bool) -> Any:
    return load_causal_lm(base, dropout=False, adapter=LoRA(rank=4) if adapter else None)


def follows_the_policy(sampler: VLLMEngine | VLLMServer, model: Any) -> None:
    """Check that greedy tokens are the native engine's after each sync, and the previous ones before it.

    Sampled ones have its tempered log-probabilities.
    """
    assert_follows(sampler, model)
    ids, keys = torch.tensor([[5, 6]] * 64), [("rollout", 0, 0, 0), ("rollout", 0, 0, 0), ("rollout", 0, 0, 1)]
    settings, answers = SamplingSettings(max_new_tokens=10, temperature=0.7), []
    for key in keys:
        out = sampler.generate(ids.tolist(), settings, seeded_generator("cpu", *key))
        with torch.no_grad():
            batch = (ids, torch.ones_like(ids), out.tokens, out.mask, 0.7)
            again, exact = response_logprobs(model, *batch), response_logprobs(deepcopy(model).double(), *batch)
        # Only rounding away from the trainer's, which a few sharp rows magnify: so the mean.
        assert (out.logprobs - again).abs().mean() <= 4 * (again - exact).abs().mean()
        answers.append(rows(out))
    assert answers[0] == answers[1]
    assert len({tuple(row) for row in answers[0]}) > 8
    # Rows of two ranks are equal by chance no more often than two rows of one rank: with shared seeds all 64 would be.
    chance = sum(a == b for a, b in combinations(answers[0], 2)) / comb(64, 2) * 64
    assert sum(a == b for a, b in zip(answers[0], answers[2], strict=True)) <= chance + 4 * chance**0.5 + 1 < 48
    assert any(row[-1] == 1 for row in answers[0])  # the EOS is a token of its response


def test_in_process_it_follows_the_policy_and_leaves_the_trainers_state_alone(adapter: bool, base: Path) -> None:
    model = load(base, adapter)
    sampler: Any = make_engine(VLLMRollout(engine_args=EAGER, gpu_memory_utilization=0.1), 0, [1])
    setter = torch.set_num_threads
    for _ in range(2):  # a closed engine starts again: a pipeline's stages share a process
        with contextlib.closing(sampler):
            torch.manual_seed(3)
            random.seed(3)
            want = (torch.rand(2).tolist(), random.random())
            torch.manual_seed(3)
            random.seed(3)
            with torch.autocast("cpu", enabled=False):
                sampler.sync(model)
                sampler.generate(PROMPTS, GREEDY, seeded_generator("cpu", "rollout", 0))
            assert (torch.rand(2).tolist(), random.random()) == want
            assert torch.set_num_threads is setter
            follows_the_policy(sampler, model)
        assert not torch.distributed.is_initialized()


def test_a_server_follows_the_policy(adapter: bool, base: Path, server: str) -> None:
    sampler: Any = make_engine(VLLMRollout(server=server), 0, [1])
    follows_the_policy(sampler, load(base, adapter))
    sampler.close()


@pytest.mark.parametrize("where", ["process", "server"])
def test_two_iterations_of_the_real_command(where: str, adapter: bool, base: Path, server: str) -> None:
    kind = "lora" if adapter else "none"
    run = f"{where}-{kind}"
    command = [
        *(program("rlhf-train"), "experiment=ppo", "rollout=vllm", f"model/adapter={kind}"),
        *("model.path=base", "data.train=prompts.jsonl", f"run_dir={run}", "trainer.max_epochs=2", "logger=none"),
        *("reward.function=tests.algorithms.conftest.count_early", "rollout.batch_size=16", "rollout.max_new_tokens=8"),
        *("rollout.temperature=0.8", "optimizer.lr=0.01", "trainer.accelerator=cpu", "callbacks.progress=null"),
        *("+trainer.enable_progress_bar=false", "algorithm.importance_cap=2.0"),
    ]
    if where == "server":
        command.append(f"rollout.server={server}")
    else:
        command += ["rollout.engine_args={enforce_eager: true, max_model_len: 128}"]
    done = subprocess.run(command, cwd=base.parent, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (base.parent / run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert line["rollout/logprob_gap_max"] <= 1e-4
        assert line["rollout/importance_weight"] == pytest.approx(1.0, abs=1e-4)
        assert line["rollout/importance_capped"] == 0.0
    assert lines[0]["objective/kl"] == 0.0 < lines[1]["objective/kl"]  # the second rollout uses changed weights


def test_a_server_that_reports_probabilities_before_the_temperature_is_refused(base: Path) -> None:
    running, address = serve(base)
    try:
        sampler: Any = make_engine(VLLMRollout(server=address), 0, [1])
        sampler.sync(load(base, True))
        with pytest.raises(ValueError, match="start it with --logprobs-mode processed_logprobs"):
            sampler.generate(PROMPTS, SamplingSettings(max_new_tokens=4, temperature=0.8))
    finally:
        running.terminate()
        running.wait(timeout=60)
