"""The best accuracy possible on held-out labels, if the rows say how probable each label was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlhf_lightning.data.reading import read_records
from rlhf_lightning.simulation import mean_certainty


def bayes_accuracy(rows_file: str | None, limit: int | None = None) -> float | None:
    """Return the accuracy that no model can be expected to beat on the pairs of a JSONL file.

    None for another kind of source, or if some row has no `label_probability` in [0, 1].

    Args:
        rows_file: the file with the pairs.
        limit: how many of its rows were read.
    """
    if not str(rows_file).endswith(".jsonl") or not Path(str(rows_file)).is_file():
        return None
    rows = read_records(str(rows_file), limit=limit)
    column: list[Any] = [row.get("label_probability") for row in rows]
    probabilities = [float(p) for p in column if isinstance(p, int | float) and 0 <= p <= 1]
    return mean_certainty(probabilities) if probabilities and len(probabilities) == len(rows) else None
