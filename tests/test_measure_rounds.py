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
    assert "| +1.00 (+1.00 to +1.00) | +1.00 | – |" in text  # a single seed has no interval over seeds
    assert "| +100.0% (+100.0% to +100.0%) | +100.0% |" in text


def test_two_rounds_and_one_are_compared_kind_by_kind(script: Any, tmp_path: Path) -> None:
    (tmp_path / "rounds/world").mkdir(parents=True)
    rows = [f'{{"prompt": "{i}", "kind": "{"ab"[i % 2]}"}}' for i in (0, 1, 2, 0, 3)]  # one prompt twice
    (tmp_path / "rounds/world/prompts_test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    scores = {"rounds_2": np.array([1.0, 5.0, 2.0, 6.0]), "one": np.array([0.0, 1.0, 0.0, 1.0])}
    lines = script.table_of_kinds([tmp_path] * 2, [scores, {**scores, "one": scores["one"] + 1}]).splitlines()
    assert lines[2:] == [
        "| a | 1.50 | 0.50 | +1.00 | -5.35 to +7.35 |",
        "| b | 5.50 | 1.50 | +4.00 | -2.35 to +10.35 |",
    ]


def test_accuracies_are_those_of_the_mean_of_all_members(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("one/reward_1_a", "one/reward_1_b", "majority/reward_1", "bradley_terry/reward_1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "summary.json").touch()
    (tmp_path / "rounds/world").mkdir(parents=True)
    row = '{"prompt": "a", "chosen": "b", "rejected": "cc"}'
    (tmp_path / "rounds/world/preferences_test.jsonl").write_text(row, encoding="utf-8")
    given = []

    def make_reward(**settings: Any) -> Any:
        given.append(settings.get("models") or [settings["model"]])
        return lambda prompts, responses: [len(response) for response in responses]

    monkeypatch.setattr("rlhf_lightning.rewards.make_reward", make_reward)
    assert all(found == [0.0] for found in script.accuracies(tmp_path).values())
    names = [["one/reward_1_a", "one/reward_1_b"], ["bradley_terry/reward_1"], ["majority/reward_1"]]
    assert given == [[str(tmp_path / name) for name in each] for each in names]


def test_what_was_scored_once_is_not_scored_again(script: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(script, "golds", lambda folder, seed: {"sft": np.array([0.5, 1.0])})
    monkeypatch.setattr(script, "accuracies", lambda folder: {"majority": np.array([1.0])})
    first = script.scores(tmp_path, 0)
    monkeypatch.setattr(script, "golds", lambda folder, seed: pytest.fail("it sampled again"))
    for kind, again in zip(first, script.scores(tmp_path, 0), strict=True):
        assert {name: list(each) for name, each in kind.items()} == {name: list(each) for name, each in again.items()}
