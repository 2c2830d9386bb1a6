"""`scripts/ensemble_overoptimization.py`: its runs are valid, and its table counts prompt by prompt."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.config.checks import check_sections
from rlhf_lightning.config.schema import Train
from rlhf_lightning.config.validation import validate

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("ensemble_overoptimization")


def test_its_runs_are_valid_and_differ_in_the_reward_alone(script: Any, tmp_path: Path) -> None:
    configs = {
        name: compose_config("train", [*words, f"run_dir={tmp_path}", "logger=none", "prepare=null"])
        for name, words in script.runs(tmp_path, tmp_path / "base", 3).items()
    }
    for config in configs.values():
        validate(config, Train)
        check_sections(config)
    assert set(configs) == {"reward_0", "reward_1", "reward_2", "one", "min"}
    one, of_all = configs["one"], configs["min"]
    assert one.pop("reward")["standardize"] and of_all.pop("reward")["standardize"]
    assert one == of_all


def test_what_is_lost_is_compared_on_the_same_prompts(script: Any, tmp_path: Path) -> None:
    golds = {"one": [[0.0, 2.0], [4.0, 6.0], [1.0, 4.0]], "min": [[0.0, 2.0], [3.0, 5.0], [3.0, 4.0]]}
    for name, validations in golds.items():
        rows = [[prompt, gold] for each in validations for prompt, gold in zip("ab", each, strict=True)]
        repeated = [row for row in rows for _ in range(script.SAMPLES)]
        (tmp_path / f"{name}.gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in repeated))
    text, less = script.table([tmp_path])
    one, of_all, every = text.splitlines()[2:]
    assert "| 5.00 | 2.50 | 2.50 (" in one
    assert "| 4.00 | 3.50 | 0.50 (" in of_all
    assert "| 2.00 (" in every  # lost by one (3, 2) less lost by the minimum (0, 1)
    assert less
