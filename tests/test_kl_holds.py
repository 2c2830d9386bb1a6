"""`make kl` counts a run as held by the mean of its last ten iterations, and fails if one is not."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("kl_holds")


def write_run(folder: Path, kls: list[float], target: float = 2.0) -> None:
    """Write a run folder as the script reads it, with a validation line between the iterations."""
    folder.mkdir(parents=True)
    rows = [{"objective/kl": kl, "kl/coef": 0.1 * step} for step, kl in enumerate(kls, start=1)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows[:3], {"val/scores": 1.0}, *rows[3:]])
    (folder / "metrics.jsonl").write_text(text)
    (folder / "config.yaml").write_text(json.dumps({"algorithm": {"kl": {"target": target}}}))
    (folder / "summary.json").write_text("{}")


def test_a_run_is_read_by_its_last_ten_iterations(script: Any, tmp_path: Path) -> None:
    write_run(tmp_path / "run", [0.0, 9.0, 1.9, 5.0, *[2.0, 2.3] * 5])
    held = script.read(tmp_path / "run")
    assert (held.first, held.target, held.holds) == (3, 2.0, True)
    assert held.mean == pytest.approx(2.15)
    assert held.error == pytest.approx(0.075)
    assert held.coef == pytest.approx(1.4)


@pytest.mark.parametrize(("kl", "code"), [(2.15, 0), (2.25, 1), (1.85, 0), (1.75, 1)])
def test_one_run_outside_its_band_makes_the_exit_code_1(
    kl: float, code: int, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in (("seed3/sft", 0.0), ("seed3/reward", 0.0), ("seed3/ppo_1", 2.0), ("seed3/ppo_2", kl)):
        write_run(tmp_path / name, [0.0, 0.0, 0.0, *[value] * 10])
    monkeypatch.setattr(sys, "argv", ["kl_holds.py", "--folder", str(tmp_path), "--seeds", "3"])
    with pytest.raises(SystemExit) as end:
        script.main()
    assert end.value.code == code
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "table.md").read_text()
    assert f"{2 - code} of 2 runs within 10% of their target" in printed
    assert "| 3 | 1 | 2.00 | +0.0% | iteration 4 | 1.300 |" in printed
    assert ("never" in printed) == bool(code)
