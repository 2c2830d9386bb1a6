"""Answers with rewards: a number for the whole answer, or one for each of its tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from rlhf_lightning.data.collation import collate_rewarded
from rlhf_lightning.data.datamodules import AnswersDataModule
from rlhf_lightning.data.messages import template_options
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import Report, blamed_on
from rlhf_lightning.data.rewarded_batches import TokenizedRewarded
from rlhf_lightning.data.row_values import checked_row, finite_number
from rlhf_lightning.data.rows import shown_columns
from rlhf_lightning.data.single_answers import AnswerRow, single_answers
from rlhf_lightning.data.templates import is_conversational
from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Text


class RewardedDataModule(AnswersDataModule):
    """Answers with their rewards, for learning from a fixed set of them.

    Args:
        reward_column: the column of the rewards.

    The other arguments are those of `AnswersDataModule` and `RowDataModule`; `batch_size` counts answers.
    """

    kind: ClassVar[str] = "rewarded"
    collate = staticmethod(collate_rewarded)

    @checked("data")
    def __init__(self, *args: Any, reward_column: Text = "reward", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reward_column = reward_column

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        given = self._renamed(rows, source)
        return rewarded(given, self.tokenizer, source, self.max_length, self.max_prompt_length)

    def check_rows(self, rows: Numbered, source: str) -> None:
        _rewarded_rows(self._renamed(rows, source), source)

    def _renamed(self, rows: Numbered, source: str) -> Numbered:
        if self.reward_column == "reward":
            return rows
        for index, row in rows:
            with blamed_on(source, index):
                if row.get(self.reward_column) is None:
                    raise UserError(
                        f"data.reward_column: no {self.reward_column!r} in columns {shown_columns(row)}; name one"
                    )
        return [(index, {**row, "reward": row[self.reward_column]}) for index, row in rows]


def rewarded(
    rows: Numbered, tokenizer: Any, source: str, max_length: int | None, max_prompt_length: int | None = None
) -> tuple[list[TokenizedRewarded], Report]:
    """Return rewarded answers. A reward of the whole answer is at its last token, also if the answer is truncated."""
    given, report = _rewarded_rows(rows, source), Report(source, read=len(rows))
    lengths = (max_length, max_prompt_length)
    return single_answers(given, tokenizer, report, _of_tokens, TokenizedRewarded, lengths)


def _of_tokens(reward: float | list[float], tokens: int, kept: int) -> list[float]:
    """Return a number for each kept token of an answer."""
    if not isinstance(reward, list):
        return [0.0] * (kept - 1) + [reward]
    if len(reward) != tokens:
        raise UserError(
            f"reward: found {len(reward)} numbers for {tokens} tokens; must be one number for the whole completion, or "
            "one for each of its tokens, the EOS that ends it included"
        )
    return reward[:kept]


def _rewarded_rows(rows: Numbered, source: str) -> list[AnswerRow[float | list[float]]]:
    found = []
    for index, row in rows:
        with blamed_on(source, index):
            kind, row = checked_row(row, "rewarded answers", ("rewarded", "labelled"))
            if row.get("reward") is None:
                raise UserError(f"reward: missing beside {kind} columns; give each row a number, or one per token")
            options = template_options(row, is_conversational(row["prompt"]))
            found.append(AnswerRow(index, row["prompt"], row["completion"], _numbers(row["reward"]), options))
    return found


def _numbers(reward: Any) -> float | list[float]:
    if not isinstance(reward, list):
        return finite_number("reward", reward)
    if not reward:
        raise UserError("reward: found an empty list; must be a number, or one number per token")
    return [finite_number("reward", each) for each in reward]
