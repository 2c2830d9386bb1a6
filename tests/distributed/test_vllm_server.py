"""Two processes that share one vLLM server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.test_processes import launch
from tests.distributed.worker import save_base
from tests.rollout.fake_vllm import serving

HEALTHY = 2 * 2 * 2 * 4  # completions: policies, iterations, processes, rows


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_two_processes_share_a_server_that_is_given_the_weights_once_and_fail_together(
    kind: str, tmp_path: Path
) -> None:
    """Also with sharded weights: the server samples like the gathered policy, and no process hangs."""
    save_base(tmp_path)
    with serving(tmp_path / "base") as server:
        server.dies_at = HEALTHY + 3
        launch(tmp_path, kind, worker="tests.distributed.vllm_worker", further=[server.address])
        log, requests = server.log, server.requests
    first, second = (json.loads((tmp_path / f"vllm_{kind}_{rank}.json").read_text()) for rank in (0, 1))
    for name in ("ppo", "ppo_lora"):
        assert first[name][0]["rollout/logprob_gap_max"] <= 1e-4
        assert first[name][0]["policy/ratio_max"] > 1.001  # the weights have moved, so the second sync took effect
        assert all(a != b for a, b in zip(first[name][1], second[name][1], strict=True) if len(a) > 6)
    assert len(requests) >= HEALTHY
    for run in (requests[:16], requests[16:32]):
        assert len({request["seed"] for request in run}) == 16  # over rows, processes and iterations
    assert log[:4] == ["reload", "reset_prefix_cache"] * 2
    loads = [line.split("-")[-1] for line in log if line.startswith("load")]
    assert loads == ["1", "2", "1"]
    assert "does not answer POST /v1/completions" in first["dies"] and "ckpt=last" in second["dies"]
