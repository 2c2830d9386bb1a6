"""How `scripts/measure_rounds.py` counts: intervals with prompts as the units, differences on the same prompts."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_lightning.commands.composition import compose_config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("measure_rounds")


def test_an_interval_is_that_of_the_mean_over_the_prompts_of_all_seeds(script: Any) -> None:
    seeds = [np.random.default_rng(seed).normal(seed, 1.0, 400) for seed in (0, 1)]
    mean, low, high = script.interval(seeds)
    assert mean == pytest.approx(np.mean(seeds))
    error = np.sqrt(sum(seed.var() / 400 for seed in seeds)) / 2
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.1)  # the seeds' own difference is no noise


def test_an_interval_over_seeds_takes_the_seeds_as_the_sample(script: Any) -> None:
    low, high = script.interval_over_seeds([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), abs=1e-4)  # t(0.975) of 2 degrees
    assert np.isnan(script.interval_over_seeds([1.0])).all()


def test_the_script_compares_rounds_of_as_many_tasks_as_the_config_asks(script: Any) -> None:
    assert compose_config("pipeline", ["pipeline=rounds"])["round"]["collect"]["call"]["limit"] == script.LIMIT


def test_a_gain_is_of_the_same_prompts(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "right_labels", lambda folder: dict.fromkeys(script.AGGREGATIONS, 0.5))
    prompts = np.random.default_rng(0).normal(0, 5, 50)
    scores = {"sft": prompts, "rounds_1": prompts + 1, "rounds_2": prompts + 3, "rounds_3": prompts + 3}
    scores["one"] = prompts + 2
    accuracy = {"majority": np.zeros(4), "dawid_skene": np.ones(4), "bradley_terry": np.zeros(4)}
    text = script.tables([tmp_path], [scores], [accuracy])
    assert "| +2.00 (+2.00 to +2.00) | +2.00 |" in text  # of the second round over the first
    assert "| +1.00 (+1.00 to +1.00) | +1.00 |" in text  # of two rounds over one
    assert "| +100.0% (+100.0% to +100.0%) | +100.0% |" in text
