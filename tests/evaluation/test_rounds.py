"""Metrics and pictures over rounds."""

from __future__ import annotations

import json

import pytest

from rlhf_lightning.evaluation import Evaluation
from rlhf_lightning.evaluation.policies import _opponents
from rlhf_lightning.evaluation.rounds import mean_intervals, round_rows, write_rounds

SUMMARY = {
    "sft.gold_mean": 0.0,
    "export_1.judgements": 100,
    "export_1.alpha": 0.4,
    "export_1.look_at": "long",
    "ppo_1.gold_mean": 1.0,
    "ppo_1.gold_win_rate_vs_sft": 0.8,
    "ppo_1.kl": 1.2,
    "export_2.judgements": 200,
    "ppo_2.gold_mean": 1.5,
    "ppo_2.gold_win_rate_vs_sft": 0.9,
    "ppo_2.gold_win_rate_vs_ppo_1": 0.6,
    "ppo_2.kl": 1.9,
    "ppo_3.kl": 9.0,
    "notes_1.kl": 9.0,
}


def test_a_row_has_the_numbers_of_its_round():
    first, second = round_rows(SUMMARY, ["export", "ppo"], 2)
    assert first == {
        "round": 1, "export.judgements": 100, "export.alpha": 0.4, "ppo.gold_mean": 1.0,
        "ppo.gold_win_rate_vs_sft": 0.8, "ppo.kl": 1.2,
    }  # fmt: skip
    assert second["ppo.gold_win_rate_vs_ppo_1"] == 0.6


def test_a_round_that_has_not_begun_has_no_row():
    assert [row["round"] for row in round_rows(SUMMARY, ["export"], 5)] == [1, 2]


def test_rows_and_picture_are_written(tmp_path):
    rows = round_rows(SUMMARY, ["export", "ppo"], 2)
    table, picture = write_rounds(tmp_path, rows, {"gold_mean": 0.0}, "rounds")
    assert [json.loads(line)["round"] for line in table.read_text().splitlines()] == [1, 2]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_rounds_without_scores_have_a_picture_of_their_labels(tmp_path):
    files = write_rounds(tmp_path, round_rows(SUMMARY, ["export"], 2), {}, "rounds")
    assert [file.name for file in files] == ["rounds.jsonl", "rounds.png"]


def test_the_interval_of_a_mean_counts_prompts():
    def row(prompt: str, score: float) -> dict:
        return {"prompt": prompt, "policies": {"ppo": {"gold": score}}}

    once = [row("a", 1.0), row("b", 2.0), row("c", 4.5)]
    found, twice = (mean_intervals(Evaluation({"ppo": {}}, rows)) for rows in (once, once * 2))
    assert found == twice
    mean, error = 2.5, (((1.5**2 + 0.5**2 + 2.0**2) / 2) / 3) ** 0.5
    assert found["ppo.gold_mean_low"] == pytest.approx(mean - 1.96 * error, abs=1e-4)
    assert found["ppo.gold_mean_high"] == pytest.approx(mean + 1.96 * error, abs=1e-4)


def test_win_rates_are_against_every_policy_before():
    names = ["sft", "ppo_1", "ppo_2"]
    assert _opponents("ppo_2", names, "sft", every_pair=True) == ["sft", "ppo_1"]
    assert _opponents("ppo_2", names, "sft", every_pair=False) == ["sft"]
    assert _opponents("sft", names, "ppo_2", every_pair=True) == ["ppo_2"]
