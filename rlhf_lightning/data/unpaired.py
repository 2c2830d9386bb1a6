"""Desirable and undesirable answers, and prompts paired with the answers to other prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from rlhf_lightning.data import labelled
from rlhf_lightning.data.batches import Batch, MismatchedBatch, TokenizedAnswer, UnpairedBatch
from rlhf_lightning.data.collation import collate_answers, collate_mismatched
from rlhf_lightning.data.datamodules import AnswersDataModule, pad_id
from rlhf_lightning.data.loader import BatchLoader
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.report import Report
from rlhf_lightning.data.tokenization import truncate
from rlhf_lightning.errors import UserError


class UnpairedLoader(BatchLoader):
    """A `BatchLoader` whose batches include mismatched pairs: a prompt, and the answer to a different one.

    The prompt at position i of the epoch's order is paired with the answer at position i - 1 (the first with the last),
    or the nearest before it that answers a different prompt. So answers shift by one position at batch time, in
    training order, and even a batch of one has another row's answer. The pairs of a whole optimiser step are in its
    first batch, so that what is computed from them is the same for all its micro-batches.

    Args:
        collate_mismatched: rows of mismatched pairs -> batch.
        shorten: (prompt, answers) -> the same, truncated to a row's maximum length.

    The other arguments are those of `BatchLoader`.
    """

    rows: Sequence[TokenizedAnswer]

    def __init__(
        self,
        *args: Any,
        collate_mismatched: Callable[[list[TokenizedAnswer]], MismatchedBatch],
        shorten: Callable[[list[int], list[list[int]]], tuple[list[int], list[list[int]]]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.collate_mismatched, self.shorten = collate_mismatched, shorten

    def others(self) -> dict[int, int | None]:
        """Return row -> the row whose answer follows its prompt in this epoch; None: all rows share one prompt."""
        order = self.order()
        prompts = [self.rows[i].prompt_ids for i in order]
        found: dict[int, int | None] = {}
        other = next((place for place in reversed(range(len(order))) if prompts[place] != prompts[0]), None)
        for place, row in enumerate(order):
            if place and prompts[place] != prompts[place - 1]:
                other = place - 1
            found[row] = None if other is None else order[other]
        return found

    def __iter__(self) -> Iterator[Batch]:
        windows, others, global_batches, start = self.windows(), self.others(), self._global_batches(), self._start
        for step, batch in enumerate(super().__iter__(), start):
            assert isinstance(batch, UnpairedBatch)
            window = next(window for window in windows if step < window.stop)
            if step in (start, window.start):
                rows = [self._mismatched(global_batches[i], others) for i in range(step, window.stop)]
                batch.mismatched = tuple(self.collate_mismatched(each) for each in rows)
            yield batch

    def _mismatched(self, global_batch: list[int], others: dict[int, int | None]) -> list[TokenizedAnswer]:
        """Return this rank's rows of a batch with the answers to other prompts."""
        mine = global_batch[self.rank :: self.world_size]
        pairs = []
        for i in mine or global_batch[:1]:
            row, other = self.rows[i], others[i]
            answer = row.answer if other is None else self.rows[other].answer
            prompt, (answer,) = self.shorten(row.prompt_ids, [answer])
            pairs.append(replace(row, prompt_ids=prompt, answer=answer, weight=float(bool(mine) and other is not None)))
        return pairs


class UnpairedDataModule(AnswersDataModule):
    """Desirable and undesirable answers: labelled rows, and both answers of a chosen and rejected pair separately.

    Args:
        batch_size: answers per batch and process.

    The other arguments are those of `AnswersDataModule` and `RowDataModule`.
    """

    kind: ClassVar[str] = "unpaired"
    collate = staticmethod(collate_answers)

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        return labelled.answers(rows, self.tokenizer, source, self.max_length, self.max_prompt_length)

    def check_rows(self, rows: Numbered, source: str) -> None:
        labelled.check_answers(rows, source)

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise, once.

        Raises:
            UserError: every training row has the same prompt, so none can be paired with the answer to another.
        """
        super().setup(stage)
        if len({tuple(row.prompt_ids) for row in self.train_rows}) < 2:
            raise UserError(
                f"data.train: all {len(self.train_rows)} answers are to one prompt, and the reference point is "
                "measured on answers to other prompts; give rows of at least two prompts"
            )

    def _answers(self, split: str, shuffle: bool = False) -> BatchLoader:
        mismatched = partial(collate_mismatched, pad_id=pad_id(self.tokenizer))
        shorten = partial(truncate, max_length=self.max_length, bos_id=self.tokenizer.bos_token_id)
        make = partial(UnpairedLoader, collate_mismatched=mismatched, shorten=shorten)
        return self._loader(split, type(self).collate, self.batch_size, shuffle, make)
