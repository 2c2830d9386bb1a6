from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.evaluation import bayes_accuracy


def test_the_ceiling_is_known_where_every_label_has_a_probability(tmp_path: Path) -> None:
    rows = tmp_path / "pairs.jsonl"
    rows.write_text('{"label_probability": 0.9}\n{"label_probability": 0.2}\n')
    assert bayes_accuracy(str(rows)) == pytest.approx(0.85)
    rows.write_text('{"label_probability": 0.9}\n{}\n')
    for source in (str(rows), "gone.jsonl", "org/name", None):
        assert bayes_accuracy(source) is None


def test_the_ceiling_reads_what_training_reads(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"label_probability": p, "chosen": "a\u2028b\x85c"} for p in (0.9, 0.2)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) + "{broken\n")
    assert bayes_accuracy(str(file), limit=2) == pytest.approx(0.85)
    for value in (None, "high", 7, float("nan")):
        file.write_text(json.dumps({"label_probability": value}) + "\n")
        assert bayes_accuracy(str(file)) is None
