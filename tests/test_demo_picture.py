"""README's picture is drawn from a demo's own files, and shows no prompt that should be refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from rlhf_lightning.evaluation import Evaluation, write_report

ROOT = Path(__file__).parents[1]
KINDS = ["howto", "unsafe", "looks_unsafe", "unknowable", "howto"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import demo_picture

    return demo_picture


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script reads of a finished demo."""
    folder = tmp_path_factory.mktemp("demo")
    samples = [
        {
            "prompt": f"question {i}?",
            "kind": kind,
            "policies": {name: {"response": f"{name} <says> {i}", "gold": i - 1.0} for name in ("sft", "ppo", "dpo")},
        }
        for i, kind in enumerate(KINDS)
    ]
    wins = {"gold_win_rate_vs_sft": 0.8, "gold_win_rate_vs_sft_low": 0.7, "gold_win_rate_vs_sft_high": 0.9}
    evaluation = Evaluation({"sft": {}, "ppo": dict(wins), "dpo": dict(wins)}, samples)
    history = [{"epoch": i, "objective/scores": 0.1 * i, "objective/kl": 0.2 * i} for i in range(4)]
    write_report(folder, evaluation, {"ppo": history}, "demo")
    (folder / "ppo").mkdir()
    (folder / "ppo/metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in history))
    (folder / "summary.json").write_text(json.dumps({"ppo.kl_target": 1.8, **evaluation.flat()}))
    return folder


def test_its_samples_are_the_reports_first_harmless_ones(script: Any, demo: Path) -> None:
    rows = script.harmless_samples((demo / "report.html").read_text(encoding="utf-8"), 2)
    assert [[cell["text"].strip() for cell in row] for row in rows] == [
        [f"question {i}?", *(f"{name} <says> {i}" for name in ("sft", "ppo", "dpo"))] for i in (0, 3)
    ]
    assert [cell["score"] for cell in rows[0][1:]] == ["−1.0"] * 3


def test_it_is_drawn_wide_enough_to_be_read(script: Any, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["demo_picture", "--demo", str(demo), "--to", str(demo / "drawn.png")])
    script.main()
    with Image.open(demo / "drawn.png") as drawn, Image.open(ROOT / "docs/demo.png") as kept:
        assert drawn.size == kept.size
        assert drawn.width > 1500  # twice the width at which README shows it
