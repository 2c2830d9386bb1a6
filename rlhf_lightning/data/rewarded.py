"""Answers with rewards: a number for the whole answer, or one for each of its tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from rlhf_lightning.data.collation import collate_rewarded
from rlhf_lightning.data.datamodules import AnswersDataModule
from rlhf_lightning.data.loader import BatchLoader
from rlhf_lightning.data.messages import Options, template_options
from rlhf_lightning.data.messages import Text as Messages
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import CUT_AWAY, Report, blamed_on
from rlhf_lightning.data.rewarded_batches import TokenizedRewarded
from rlhf_lightning.data.row_values import checked_row, finite_number
from rlhf_lightning.data.rows import shown_columns
from rlhf_lightning.data.templates import is_conversational, render_completion, render_prompt
from rlhf_lightning.data.tokenization import Rendered, tokenize_rendered, truncate
from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Text


class RewardedDataModule(AnswersDataModule):
    """Answers with their rewards, for learning from a fixed set of them.

    Args:
        batch_size: answers per batch and process.
        reward_column: the column of the rewards.

    The other arguments are those of `AnswersDataModule` and `RowDataModule`.
    """

    kind: ClassVar[str] = "rewarded"

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

    def train_dataloader(self) -> BatchLoader:
        return self._answers("train", shuffle=True)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._answers("val") if "val" in self._rows else []

    def _answers(self, split: str, shuffle: bool = False) -> BatchLoader:
        weights = [row.weight for row in self._rows[split]]
        return self._loader(split, collate_rewarded, self.batch_size, weights, shuffle)


def rewarded(
    rows: Numbered, tokenizer: Any, source: str, max_length: int | None, max_prompt_length: int | None = None
) -> tuple[list[TokenizedRewarded], Report]:
    """Return rewarded answers. A reward of the whole answer is at its last token, also if the answer is truncated."""
    report = Report(source, read=len(rows))
    given = _rewarded_rows(rows, source)
    texts: list[Rendered] = []
    for row in given:
        with blamed_on(source, row.index):
            prompt, templated = render_prompt(tokenizer, row.prompt, row.options), is_conversational(row.prompt)
            answer = render_completion(tokenizer, row.prompt, row.answer, before=prompt, options=row.options)
            texts.append(Rendered(prompt, answer, templated))
    prepared = []
    for row, (prompt_ids, answer_ids) in zip(given, tokenize_rendered(tokenizer, texts), strict=True):
        with blamed_on(source, row.index):
            rewards = _of_tokens(row.reward, len(answer_ids))
        short, (cut,) = truncate(prompt_ids, [answer_ids], max_length, max_prompt_length, tokenizer.bos_token_id)
        report.truncated += len(short) + len(cut) < len(prompt_ids) + len(answer_ids)
        if not cut:
            report.dropped[CUT_AWAY] += 1
            continue
        if not short:
            report.without_prompt.append(row.index + 1)
        kept = rewards[: len(cut)] if isinstance(row.reward, list) else _of_tokens(row.reward, len(cut))
        prepared.append(TokenizedRewarded(short, cut, kept))
    report.kept = len(prepared)
    report.check(max_length)
    return prepared, report


def _of_tokens(reward: float | list[float], tokens: int) -> list[float]:
    """Return a number per token of an answer."""
    if not isinstance(reward, list):
        return [0.0] * (tokens - 1) + [reward]
    if len(reward) != tokens:
        raise UserError(
            f"reward: found {len(reward)} numbers for {tokens} tokens; must be one number for the whole completion, or "
            "one for each of its tokens, the EOS that ends it included"
        )
    return reward


@dataclass(frozen=True)
class _Rewarded:
    index: int
    prompt: Messages
    answer: Messages
    reward: float | list[float]
    options: Options


def _rewarded_rows(rows: Numbered, source: str) -> list[_Rewarded]:
    found = []
    for index, row in rows:
        with blamed_on(source, index):
            kind, row = checked_row(row, "rewarded answers", ("rewarded", "labelled"))
            if row.get("reward") is None:
                raise UserError(f"reward: missing beside {kind} columns; give each row a number, or one per token")
            options = template_options(row, is_conversational(row["prompt"]))
            found.append(_Rewarded(index, row["prompt"], row["completion"], _numbers(row["reward"]), options))
    return found


def _numbers(reward: Any) -> float | list[float]:
    if not isinstance(reward, list):
        return finite_number("reward", reward)
    if not reward:
        raise UserError("reward: found an empty list; must be a number, or one number per token")
    return [finite_number("reward", each) for each in reward]
