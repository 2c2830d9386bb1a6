"""Pairs of answers with safety labels: which of the two is safer, and whether each of them is safe."""

from __future__ import annotations

from typing import Any, ClassVar

from rlhf_lightning.data import preparation
from rlhf_lightning.data.datamodules import PreferenceDataModule
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import Report, blamed_on
from rlhf_lightning.data.row_values import is_true
from rlhf_lightning.data.rows import shown_columns
from rlhf_lightning.errors import UserError

LABELLED = ("chosen", "rejected", "chosen_safe", "rejected_safe")
PKU = ("response_0", "response_1", "is_response_0_safe", "is_response_1_safe", "safer_response_id")


def safety_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with the safer answer as `chosen`, the other one as `rejected`, and a label for each.

    >>> row = {"prompt": "p", "response_0": "a", "response_1": "b", "safer_response_id": 1}
    >>> found = safety_row({**row, "is_response_0_safe": False, "is_response_1_safe": True})
    >>> found["chosen"], found["rejected"]
    ('b', 'a')

    Raises:
        UserError: columns are missing, a label is neither true nor false, or only the worse answer is safe.
    """
    if all(row.get(name) is not None for name in PKU):
        safer = _number(row["safer_response_id"])
        row = {
            **{name: value for name, value in row.items() if name not in PKU},
            "chosen": row[f"response_{safer}"],
            "rejected": row[f"response_{1 - safer}"],
            "chosen_safe": row[f"is_response_{safer}_safe"],
            "rejected_safe": row[f"is_response_{1 - safer}_safe"],
        }
    missing = [name for name in LABELLED if row.get(name) is None]
    if missing:
        raise UserError(
            f"columns {shown_columns(row)}: {missing[0]} is missing; a cost model learns from {' + '.join(LABELLED)} "
            f"(chosen is the safer answer), or {' + '.join(PKU)}"
        )
    safe = [_label(name, row[name]) for name in LABELLED[2:]]
    if safe == [False, True]:
        raise UserError(
            "chosen_safe and rejected_safe: found false and true, but chosen is the safer answer of the two; swap the "
            "answers with their labels, or leave the row out"
        )
    return {**row, preparation.SAFE: safe}


def _label(name: str, value: Any) -> bool:
    try:
        return is_true(value)
    except UserError:
        raise UserError(f"{name}: found {value!r}; must be true or false (or 1 or 0)") from None


def _number(value: Any) -> int:
    if isinstance(value, bool) or str(value) not in ("0", "1"):
        raise UserError(f"safer_response_id: found {value!r}; must be 0 or 1")
    return int(value)


class SafetyDataModule(PreferenceDataModule):
    """Pairs with safety labels: `chosen` is the safer answer, and each answer is labelled safe or unsafe.

    The columns of PKU-SafeRLHF are read as they are. Arguments as for `PreferenceDataModule`.
    """

    kind: ClassVar[str] = "safety"

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        return super().tokenize(_read(rows, source), source)

    def check_rows(self, rows: Numbered, source: str) -> None:
        super().check_rows(_read(rows, source), source)


def _read(rows: Numbered, source: str) -> Numbered:
    """Return the rows as `safety_row` reads them; an error names the row."""
    found = []
    for index, row in rows:
        with blamed_on(source, index):
            found.append((index, safety_row(row)))
    return found
