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
    assert set(configs) == {"reward_0", "reward_1", "reward_2", *script.ALONE, "min"}
    of_all = configs["min"]
    assert of_all.pop("reward")["models"] == [f"{tmp_path}/reward_{member}" for member in range(3)]
    for member, name in enumerate(script.ALONE):
        reward = configs[name].pop("reward")
        assert reward["standardize"] and reward["model"] == f"{tmp_path}/reward_{member}"
        assert configs[name] == of_all


def test_what_is_lost_is_compared_on_the_same_prompts(script: Any, tmp_path: Path) -> None:
    of_one = {"one_0": [[4.0, 6.0], [1.0, 4.0]], "one_1": [[4.0, 5.0], [1.0, 5.0]], "one_2": [[4.0, 4.0], [1.0, 1.0]]}
    golds = {**of_one, "min": [[3.0, 5.0], [3.0, 4.0]]}
    for name, validations in golds.items():
        rows = [[prompt, gold] for each in validations for prompt, gold in zip("ab", each, strict=True)]
        repeated = [row for row in rows for _ in range(script.SAMPLES)]
        (tmp_path / f"{name}.gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in repeated))
    text, less = script.table([tmp_path])
    *alone, of_all, every = text.splitlines()[2:]
    assert ["reward model 0 alone | 5.00 | 2.50 | 2.50 (" in alone[0], len(alone)] == [True, 3]
    assert "minimum of 3 | 4.00 | 3.50 | 0.50 (" in of_all
    assert "| 1.83 (" in every  # of one model, prompt by prompt: 3 and 5 / 3; of the minimum: 0 and 1
    assert not less  # two prompts leave the interval on both sides of 0
