"""FSDP2 in half precision: the dtypes of what is sent, computed and stored, and that runs start at their reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.test_processes import launch
from tests.distributed.worker import save_base
from tests.precision.sharded_worker import RUNS

FLOAT32, BFLOAT16 = "torch.float32", "torch.bfloat16"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("sharded")
    save_base(folder)
    launch(folder, "fsdp2", worker="tests.precision.sharded_worker")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name, _ in RUNS}


def test_weights_are_gathered_in_bfloat16_and_kept_in_float32(found: dict[str, dict[str, Any]]) -> None:
    for name, precision in RUNS:
        expected = [BFLOAT16, FLOAT32] if name == "ppo_lora" else [BFLOAT16]
        assert found[name]["computed"] == expected, name
        assert found[name]["kept"] == ([BFLOAT16, FLOAT32] if precision == "bf16-true" else [FLOAT32]), name
        assert found[name]["head"] == ([] if name == "dpo" else [f"{FLOAT32} {FLOAT32}"]), name
        assert found[name]["loss"] == [FLOAT32], name


def test_sharded_runs_start_at_their_reference(found: dict[str, dict[str, Any]]) -> None:
    assert f"{found['dpo']['metrics']['train/loss']:.6f}" == "0.693147"
    for name in ("ppo", "ppo_lora"):
        assert found[name]["metrics"]["objective/kl"] == 0.0
