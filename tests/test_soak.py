"""A leak has a slope, and the script that trains for long detects it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAKS = """
import os, threading
from lightning.pytorch import Callback

kept = []

class Leak(Callback):
    def __init__(self, kind):
        self.kind = kind
    def on_train_batch_end(self, trainer, *_):
        if self.kind == "memory":
            kept.append(bytearray(os.urandom(1 << 16)))
        elif self.kind == "descriptors" and trainer.global_step % 10 == 0:
            kept.append(os.open(os.devnull, os.O_RDONLY))
        elif self.kind == "threads" and trainer.global_step % 20 == 0:
            kept.append(threading.Thread(target=threading.Event().wait, daemon=True))
            kept[-1].start()
"""


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("soak")


def noisy(slope: float, seed: int = 0) -> tuple[list[float], list[float]]:
    """Return a hundred points of a line with correlated noise, and a jump that is not growth."""
    draw = np.random.default_rng(seed)
    noise = np.convolve(draw.normal(size=109), np.ones(10) / 10, mode="valid")
    at = np.arange(100) * 10.0
    values = slope * at + noise
    values[40] += 1e6
    return at.tolist(), values.tolist()


@pytest.mark.parametrize("slope", [0.0, 0.01, -0.02])
def test_the_interval_holds_the_slope_and_not_a_jump(slope: float, soak: Any) -> None:
    inside = [low <= slope <= high for low, high in (soak.interval(*noisy(slope, seed)) for seed in range(8))]
    assert sum(inside) >= 6
    low, high = soak.interval(*noisy(slope))
    assert high - low < 0.01


def test_what_does_not_change_has_no_slope_and_no_interval(soak: Any) -> None:
    assert soak.slope([1, 2, 3], [7, 7, 7]) == 0.0
    assert soak.interval([1, 2, 3, 4], [7, 7, 7, 7]) == (0.0, 0.0)


@pytest.mark.parametrize(("per_step", "good"), [(0.0, True), (0.02, False)])
def test_growth_beyond_its_bound_is_named(per_step: float, good: bool, soak: Any) -> None:
    rows = [
        {"at": at, **dict.fromkeys(soak.BOUNDS, 5), "tensors": round(100 + per_step * at)} for at in range(0, 2000, 20)
    ]
    found = {each.name: each for each in soak.growths(rows, "step")}
    assert found["tensors"].good is good
    assert all(each.good for name, each in found.items() if name != "tensors")
    assert ("**GROWS** tensors" in soak.table("sft", 2000, "step", list(found.values()), 1.0)) is not good


def test_what_a_process_has_is_measured(soak: Any, tmp_path: Path) -> None:
    import torch

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"12345")
    (tmp_path / "metrics.jsonl").write_bytes(b"123")
    before = soak.measured(tmp_path)
    kept = torch.zeros(1000), torch.zeros(1000)[:10]
    file = os.open(os.devnull, os.O_RDONLY)
    after = soak.measured(tmp_path)
    os.close(file)
    assert (after["checkpoints"], after["checkpoints, bytes"]) == (1, 5)
    assert (after["other files"], after["other files, bytes"]) == (1, 3)
    assert after["file descriptors"] - before["file descriptors"] == 1
    assert after["tensors, bytes"] - before["tensors, bytes"] == 8000
    assert len(kept) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "named"), [("memory", "memory, bytes"), ("descriptors", "file descriptors"), ("threads", "threads")]
)
def test_a_planted_leak_is_seen(kind: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "leaks.py").write_text(LEAKS)
    plant = ["+callbacks.leak._target_=leaks.Leak", f"+callbacks.leak.kind={kind}"]
    command = [sys.executable, str(ROOT / "scripts/soak.py"), "--stages", "sft", "--units", "1000", *plant]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 1, done.stderr
    assert named in re.findall(r"\*\*GROWS\*\* ([\w, ]+) \|", done.stdout)
