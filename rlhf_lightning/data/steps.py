"""Solutions in steps, each of them right or wrong: rows of `prompt`, `completions` and `labels`.

A step is read at the last token of the separator that follows it; the last step is followed by one too. Text is
tokenised piece by piece, each in the context of what comes before, so that no token belongs to two steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.data.batches import IGNORED, Batch
from rlhf_lightning.data.collation import ones, right_pad
from rlhf_lightning.data.datamodules import AnswersDataModule
from rlhf_lightning.data.messages import Options, Text, checked_text, template_options
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import CUT_AWAY, Report, blamed_on
from rlhf_lightning.data.row_values import checked_row
from rlhf_lightning.data.templates import is_conversational, render_prompt
from rlhf_lightning.data.tokenization import Rendered, tokenize_rendered, truncate
from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Text as Named


class StepBatch(Batch):
    """Solutions whose steps are right or wrong.

    Attributes:
        input_ids: `[B, L]` long, right-padded: prompt, steps.
        attention_mask: `[B, L]` long, 1 on tokens.
        ends: `[B, L]` bool, the last token of each step.
        labels: `[B, L]` long: 1 at the end of a right step, 0 at that of a wrong one, -100 elsewhere, also at the ends
            of a row that only pads a rank's batch.
        prompt_lengths: `[B]` long, tokens before the first step.
        denominator: number of steps by which the summed loss is divided; see `BatchLoader`.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        ends: Tensor,
        labels: Tensor,
        prompt_lengths: Tensor,
        denominator: float,
    ) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask
        self.ends, self.labels, self.prompt_lengths = ends, labels, prompt_lengths
        self.denominator = denominator

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class TokenizedSteps:
    """A prompt, its steps as one sequence, where each step ends in it, and whether it is right: 1, 0 or -100."""

    prompt_ids: list[int]
    answer: list[int]
    ends: list[int]
    right: list[int]

    @property
    def weight(self) -> float:
        """Return the row's share of the loss: its number of labelled steps."""
        return float(len(self.right) - self.right.count(IGNORED))

    def sequences(self) -> list[list[int]]:
        """Return the token sequences that a model reads."""
        return [self.prompt_ids + self.answer]

    def beside_tokens(self) -> str:
        """Return what else a run uses of the row: where steps end, and which are right."""
        return repr((len(self.prompt_ids), self.ends, self.right))

    def emptied(self) -> TokenizedSteps:
        return replace(self, right=[IGNORED] * len(self.right))


def tokenize_steps(
    tokenizer: Any,
    prompts: Sequence[Text],
    steps: Sequence[Sequence[str]],
    separator: str,
    options: Sequence[Options],
) -> list[tuple[list[int], list[int], list[int]]]:
    """Return the ids of each prompt and of all its steps, and the place of each step's last token among the latter.

    Every step is followed by the separator. A step that the tokenizer turns into no token at all has the place of the
    token before it, which is -1 for the first.
    """
    texts: list[Rendered] = []
    for prompt, parts, given in zip(prompts, steps, options, strict=True):
        text, templated = render_prompt(tokenizer, prompt, given), is_conversational(prompt)
        for part in parts:
            texts.append(Rendered(text, part + separator, templated))
            text += part + separator
    encoded = iter(tokenize_rendered(tokenizer, texts, ended=False))
    found = []
    for parts in steps:
        pieces = [next(encoded) for _ in parts]
        ids: list[int] = []
        ends = []
        for _, piece in pieces:
            ids += piece
            ends.append(len(ids) - 1)
        found.append((pieces[0][0], ids, ends))
    return found


def step_rows(
    rows: Numbered,
    tokenizer: Any,
    source: str,
    separator: str,
    max_length: int | None,
    max_prompt_length: int | None = None,
) -> tuple[list[TokenizedSteps], Report]:
    """Return rows for a process reward model; steps that do not fit into `max_length` are dropped and counted."""
    report = Report(source, read=len(rows))
    checked_rows = [_checked(index, row, separator, source) for index, row in rows]
    encoded = tokenize_steps(
        tokenizer,
        [row.prompt for row in checked_rows],
        [row.steps for row in checked_rows],
        separator,
        [row.options for row in checked_rows],
    )
    prepared = []
    for row, (prompt_ids, ids, ends) in zip(checked_rows, encoded, strict=True):
        for number, (start, end) in enumerate(zip([-1, *ends], ends, strict=False), 1):
            if end == start:
                with blamed_on(source, row.index):
                    raise UserError(f"completions: the tokenizer turns step {number} into no token at all")
        short, (cut,) = truncate(prompt_ids, [ids], max_length, max_prompt_length, tokenizer.bos_token_id)
        kept = [end for end in ends if end < len(cut)]
        report.truncated += len(short) < len(prompt_ids) or len(cut) < len(ids)
        report.steps += len(kept)
        report.steps_dropped += len(ends) - len(kept)
        if not kept:
            report.dropped[CUT_AWAY] += 1
            continue
        right = [int(label) for label in row.labels[: len(kept)]]
        prepared.append(TokenizedSteps(short, cut[: kept[-1] + 1], kept, right))
    report.kept = len(prepared)
    report.check(max_length)
    return prepared, report


@dataclass(frozen=True)
class _Steps:
    index: int
    prompt: Text
    steps: list[str]
    labels: list[bool]
    options: Options


def _checked(index: int, row: dict[str, Any], separator: str, source: str) -> _Steps:
    """Return a row's values. Raises UserError with the row unless each step has a label."""
    with blamed_on(source, index):
        _, row = checked_row(row, "labelled steps", ("steps",))
        steps, labels = row["completions"], row["labels"]
        if not isinstance(steps, list) or not steps:
            raise UserError("completions: expected a list of at least one step")
        if not isinstance(labels, list) or len(labels) != len(steps):
            found = len(labels) if isinstance(labels, list) else repr(labels)
            raise UserError(f"labels: {found} for {len(steps)} completions; expected a list with one for each step")
        for number, (step, label) in enumerate(zip(steps, labels, strict=True), 1):
            if not isinstance(step, str):
                raise UserError(f"completions: step {number} is not text, but {type(step).__name__}")
            checked_text("completions", step)
            if not step.strip():
                raise UserError(f"completions: step {number} is empty; remove it together with its label")
            if separator in step:
                raise UserError(
                    f"completions: step {number} contains the separator {separator!r}, so it would be read as several; "
                    "split it, or choose another data.step_separator"
                )
            if not isinstance(label, bool):
                raise UserError(f"labels: label {number} is {label!r}; must be true or false")
        options = template_options(row, is_conversational(row["prompt"]))
        return _Steps(index, row["prompt"], steps, labels, options)


def check_step_rows(rows: Numbered, source: str, separator: str) -> None:
    """Raise UserError for the first row that is not a list of labelled steps."""
    for index, row in rows:
        _checked(index, row, separator, source)


def collate_steps(rows: Sequence[TokenizedSteps], pad_id: int) -> StepBatch:
    """Return a right-padded batch; `denominator` counts its own labelled steps, until a loader sets it."""
    ids = [row.prompt_ids + row.answer for row in rows]
    labels = right_pad([[IGNORED] * len(each) for each in ids], IGNORED)
    ends = torch.zeros_like(labels, dtype=torch.bool)
    for i, row in enumerate(rows):
        for end, right in zip(row.ends, row.right, strict=True):
            place = len(row.prompt_ids) + end
            labels[i, place], ends[i, place] = right, True
    return StepBatch(
        input_ids=right_pad(ids, pad_id),
        attention_mask=right_pad(ones(ids), 0),
        ends=ends,
        labels=labels,
        prompt_lengths=torch.tensor([len(row.prompt_ids) for row in rows], dtype=torch.long),
        denominator=max(sum(row.weight for row in rows), 1.0),
    )


class StepDataModule(AnswersDataModule):
    """Solutions in steps: `prompt`, `completions` (the steps) and `labels` (true for a right step).

    Args:
        step_separator: text that follows each step; no step may contain it.

    The other arguments are those of `AnswersDataModule` and `RowDataModule`; `batch_size` counts solutions.
    """

    kind: ClassVar[str] = "steps"
    collate = staticmethod(collate_steps)

    @checked("data")
    def __init__(self, *args: Any, step_separator: Named = "\n", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_separator = step_separator

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        lengths = (self.max_length, self.max_prompt_length)
        return step_rows(rows, self.tokenizer, source, self.step_separator, *lengths)

    def check_rows(self, rows: Numbered, source: str) -> None:
        check_step_rows(rows, source, self.step_separator)
