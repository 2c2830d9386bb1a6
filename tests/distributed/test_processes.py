"""Two processes on gloo give the same results as one, for the same global batch."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.models import load_causal_lm, load_process_reward_model, load_reward_model
from tests.algorithms.conftest import CONFIGS
from tests.distributed.worker import NAMES, Echo, save_base, trained


def launch(
    folder: Path, kind: str, nodes: int = 1, worker: str = "tests.distributed.worker", further: Sequence[str] = ()
) -> None:
    """Start two processes: of one torchrun agent, or one each of two agents, as on two nodes."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={2 // nodes}"]
    command += ["--standalone"] if nodes == 1 else [f"--nnodes={nodes}", "--rdzv-backend=c10d", "--rdzv-id=test"]
    if nodes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            command += [f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}", "--local-addr=127.0.0.1"]
    command += ["-m", worker, str(folder), kind, *further]
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    printing: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    agents = [subprocess.Popen(command, cwd=root, env=environment, **printing) for _ in range(nodes)]
    try:
        for agent in agents:
            printed, _ = agent.communicate(timeout=400)
            assert agent.returncode == 0, printed[-3000:]
    finally:
        for agent in agents:
            agent.kill()  # one that still waits for another that failed


TWO_NODES = [pytest.param((kind, 2), id=f"{kind}, two nodes", marks=pytest.mark.slow) for kind in ("ddp", "fsdp2")]


@pytest.fixture(scope="module", params=[pytest.param((kind, 1), id=kind) for kind in ("ddp", "fsdp2")] + TWO_NODES)
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    kind, nodes = request.param
    folder = tmp_path_factory.mktemp(f"{kind}{nodes}")
    save_base(folder)
    launch(folder, kind, nodes)
    return folder, kind


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("one")
    save_base(folder)
    torch.set_num_threads(1)
    return {name: trained(folder / "base", name, "auto", 1, Echo())[0] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_weights_metrics_and_controller_equal_those_of_one_process(
    name: str, two: tuple[Path, str], one: dict[str, Any]
) -> None:
    folder, kind = two
    both, alone = torch.load(folder / f"{kind}_{name}.pt", weights_only=True), one[name]
    assert both["weights"].keys() == alone["weights"].keys()
    for key, value in both["weights"].items():
        torch.testing.assert_close(value, alone["weights"][key], atol=2e-6, rtol=1e-5, msg=lambda m, k=key: f"{k}: {m}")
    assert both["metrics"].keys() == alone["metrics"].keys()
    assert both["metrics"] == pytest.approx(alone["metrics"], abs=1e-5, rel=1e-5)
    assert both["controller"] == pytest.approx(alone["controller"], abs=1e-7)


def test_every_algorithm_is_here_but_the_one_whose_masks_come_from_its_engine(one: dict[str, Any]) -> None:
    ours = {section["_target_"].rpartition(".")[2] for section in CONFIGS.values()}
    assert {each["class"] for each in one.values()} == ours - {"NLPOModule"}


def test_an_exported_folder_holds_the_whole_weights(two: tuple[Path, str]) -> None:
    folder, kind = two
    loaders: dict[str, Any] = {
        "reward": load_reward_model,
        "cost": load_reward_model,
        "process": load_process_reward_model,
    }
    for name in NAMES:
        model = loaders.get(name, load_causal_lm)(folder / f"{kind}_{name}")
        whole = torch.load(folder / f"{kind}_{name}.pt", weights_only=True)["weights"]
        norm = sum(float(value.norm()) for key, value in whole.items() if "lora" not in key)
        assert norm > 0 or "lora" in name
        assert (folder / f"{kind}_{name}" / "tokenizer.json").is_file()
        assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_two_processes_never_sample_the_same_text(two: tuple[Path, str]) -> None:
    folder, kind = two
    first, second = (json.loads((folder / f"{kind}_samples_{rank}.json").read_text()) for rank in (0, 1))
    long = [(a, b) for a, b in zip(first, second, strict=True) if len(a.split()) > 3 or len(b.split()) > 3]
    assert len(long) > 4
    assert all(a != b for a, b in long)


def test_a_held_out_score_that_falls_on_one_process_stops_both(two: tuple[Path, str]) -> None:
    folder, kind = two
    assert [json.loads((folder / f"{kind}_stopped_{rank}.json").read_text()) for rank in (0, 1)] == [3, 3]
