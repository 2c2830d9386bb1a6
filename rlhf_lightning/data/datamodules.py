"""One LightningDataModule per kind of data. Rows are read and tokenised once, in `setup`."""

from __future__ import annotations

import array
import hashlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.pytorch import LightningDataModule

from rlhf_lightning.data import preparation
from rlhf_lightning.data.batches import Batch, PreferenceBatch, PromptRow
from rlhf_lightning.data.collation import collate_preferences, collate_sequences
from rlhf_lightning.data.content import check_content
from rlhf_lightning.data.files import without_none
from rlhf_lightning.data.limits import check_validation_batches, training_batches
from rlhf_lightning.data.loader import BatchLoader
from rlhf_lightning.data.preparation import Numbered
from rlhf_lightning.data.reading import read_records
from rlhf_lightning.data.report import NothingKeptError, Report
from rlhf_lightning.data.rows import Source, split_by_prompt, without_nulls
from rlhf_lightning.errors import UserError, blaming
from rlhf_lightning.setting_rules import check_held_out
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import BelowOne, Count

log = logging.getLogger(__name__)
VAL_PROMPTS_PER_BATCH = 64
MANY_TIMES = 10  # a batch this many times larger than all rows together is a mistake
REHEARSED = 64  # rows of a later stage that are tokenised before the first stage


class RowDataModule(LightningDataModule):
    """Reads train and val rows; a subclass defines how they are tokenised and batched.

    Args:
        tokenizer: a loaded transformers tokenizer.
        train: a file, folder or hub name (see `read_records`), or the rows themselves.
        val: the same for validation; for a folder or hub name the split `test`, unless `name:split` names another.
        seed: seed of the batch order and of the split.
        val_fraction: without `val`, this share of train's prompts is held out.
        limit: the most rows to read from each source.

    Attributes:
        report: what was read, truncated and dropped, for "train" and, if there is validation data, "val".
    """

    kind: ClassVar[str]
    """The kind of rows that it provides, which an algorithm declares as its `data`."""

    @checked("data")
    def __init__(
        self,
        tokenizer: Any,
        train: Source,
        val: Source | None = None,
        *,
        seed: int = 0,
        val_fraction: float = 0.0,
        limit: int | None = None,
    ) -> None:
        super().__init__()
        check_held_out(val, val_fraction)
        self.tokenizer, self.train, self.val = tokenizer, train, val
        self.seed, self.val_fraction, self.limit = seed, val_fraction, limit
        self.report: dict[str, Report] = {}
        self._rows: dict[str, list[Any]] = {}
        self._fingerprints: dict[str, str] = {}

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        """Return the tokenised rows, and a report of what became of the rows read."""
        raise NotImplementedError

    def check_rows(self, rows: Numbered, source: str) -> None:
        """Raise UserError for the first row whose format does not fit; nothing is tokenised."""

    def rehearse(self, longest: int = REHEARSED) -> None:
        """Read all rows and prepare the first ones, like `setup`, but keep nothing.

        Args:
            longest: number of rows per split to tokenise; without a tokenizer, none.

        Raises:
            UserError: what `setup` would raise about them.
        """
        for numbered, name in self._splits().values():
            self.check_rows(numbered, name)
            first = numbered[:longest]
            with blaming(f"{name}: the rows cannot be tokenised"):
                try:
                    self.tokenize(first, name) if self.tokenizer is not None else None
                except NothingKeptError:
                    if len(first) == len(numbered):
                        raise

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise, once."""
        if self._rows:
            return
        splits = self._splits()
        for split, (numbered, name) in splits.items():
            with blaming(f"{name}: the rows cannot be tokenised"):
                self._rows[split], self.report[split] = self.tokenize(numbered, name)
            lost = self.report[split].truncated or self.report[split].dropped
            log.log(logging.WARNING if lost else logging.INFO, "%s: %s", split, self.report[split])
        check_content(self._rows["train"], self.tokenizer, splits["train"][1])
        if self.trainer and "val" not in splits:
            self.trainer.limit_val_batches = 0  # no validation; Lightning would warn about an empty loader

    def _splits(self) -> dict[str, tuple[list[tuple[int, dict[str, Any]]], str]]:
        """Return the numbered rows of train and, if there is any, validation data, each with its source's name."""
        rows, name = self._read(self.train, "train")
        splits = {"train": (list(enumerate(rows)), name)}
        if self.val_fraction:
            self.check_rows(splits["train"][0], name)  # before the split by prompt, which does not know a row's number
            train, held_out = split_by_prompt(rows, self.val_fraction, self.seed)
            splits = {"train": ([(i, rows[i]) for i in train], name), "val": ([(i, rows[i]) for i in held_out], name)}
        elif self.val is not None:
            held_out_rows, name = self._read(self.val, "test")
            splits["val"] = (list(enumerate(held_out_rows)), name)
        return splits

    def _read(self, source: Source, split: str) -> tuple[list[dict[str, Any]], str]:
        if isinstance(source, str | Path):
            with blaming(f"data.{'val' if split == 'test' else split}: {source} cannot be read"):
                rows, name = read_records(source, split=split, limit=self.limit), str(source)
        else:
            given = source if isinstance(source, list) else [without_none(dict(row)) for row in source]
            rows, name = [dict(row) for row in given][: self.limit], f"data.{'val' if split == 'test' else split}"
        return [without_nulls(row) for row in rows], name

    def tokenized_rows(self) -> list[Any]:
        """Return the tokenised rows of every split."""
        return [row for rows in self._rows.values() for row in rows]

    def fingerprint(self, split: str = "train") -> str | None:
        """Return SHA-256 of everything that a run uses of a split's rows, in order; computed once. None: no such split.

        That includes tokens, labels, pairs and margins, and for prompts the other columns, which rewards are given.
        """
        if split not in self._fingerprints and split in self._rows:
            digest = hashlib.sha256()
            for row in self._rows[split]:
                for ids in row.sequences():
                    digest.update(array.array("q", ids).tobytes())
                    digest.update(b"|")
                digest.update(row.beside_tokens().encode(errors="surrogatepass"))
                digest.update(b"\n")
            self._fingerprints[split] = digest.hexdigest()
        return self._fingerprints.get(split)

    @property
    def train_rows(self) -> list[Any]:
        """Return the tokenised training rows."""
        return self._rows["train"]

    def _loader(
        self,
        split: str,
        collate: Any,
        batch_size: int,
        shuffle: bool = False,
        make: Callable[..., BatchLoader] = BatchLoader,
    ) -> BatchLoader:
        trainer: Any = self.trainer
        rows = self._rows[split]
        world_size = trainer.world_size if trainer else 1
        batches = None
        whole = -(-len(rows) // (batch_size * world_size))
        if shuffle and batch_size > MANY_TIMES * len(rows):
            log.warning(
                f"data.batch_size: found {batch_size}, and there are {len(rows)} rows, so an epoch is one optimiser "
                "step; give a smaller one"
            )
        if trainer and shuffle:
            batches = training_batches(trainer, whole, validates="val" in self._rows)
        elif trainer:
            check_validation_batches(trainer, whole)
        return make(
            rows,
            partial(collate, pad_id=pad_id(self.tokenizer)),
            batch_size,
            weights=[row.weight for row in rows],
            seed=self.seed,
            shuffle=shuffle and not (trainer and trainer.overfit_batches),  # the same batches in every epoch
            rank=trainer.global_rank if trainer else 0,
            world_size=world_size,
            accumulate=trainer.accumulate_grad_batches if trainer and shuffle else 1,
            batches=batches,
        )


class SFTDataModule(RowDataModule):
    """Demonstrations: `text`, `messages`, `prompt` + `completion`, or labelled rows (only true ones are used).

    Args:
        batch_size: rows per training batch and process.
        val_batch_size: the same for validation; None: `batch_size`.
        max_length: most tokens per row. Longer rows keep the end of the prompt and the start of the answer.
        loss_on: "completion", "all", or "assistant" (every assistant turn, by the template's `{% generation %}`).

    The other arguments are those of `RowDataModule`.
    """

    kind: ClassVar[str] = "sft"

    @checked("data")
    def __init__(
        self,
        tokenizer: Any,
        train: Source,
        val: Source | None = None,
        batch_size: Count = 8,
        val_batch_size: Count | None = None,
        max_length: Count | None = 1024,
        loss_on: Literal["completion", "all", "assistant"] = "completion",
        seed: int = 0,
        val_fraction: BelowOne = 0.0,
        limit: Count | None = None,
    ) -> None:
        super().__init__(tokenizer, train, val, seed=seed, val_fraction=val_fraction, limit=limit)
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.max_length, self.loss_on = max_length, loss_on

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        return preparation.sequences(rows, self.tokenizer, source, self.max_length, self.loss_on)

    def check_rows(self, rows: Numbered, source: str) -> None:
        preparation.check_sequences(rows, source)

    def train_dataloader(self) -> BatchLoader:
        return self._loader("train", collate_sequences, self.batch_size, shuffle=True)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._loader("val", collate_sequences, self.val_batch_size) if "val" in self._rows else []


class AnswersDataModule(RowDataModule):
    """Answers to prompts, truncated to a maximum length.

    Args:
        batch_size: per batch and process.
        max_length: most tokens of prompt + answer. The prompt keeps its end, an answer its start.
        max_prompt_length: most tokens of the prompt; None: it is shortened only as far as `max_length` requires.

    The other arguments are those of `RowDataModule`. A kind of rows declares its `collate`.
    """

    collate: ClassVar[Callable[..., Batch]]

    @checked("data")
    def __init__(
        self,
        tokenizer: Any,
        train: Source,
        val: Source | None = None,
        batch_size: Count = 8,
        max_length: Count | None = 1024,
        max_prompt_length: Count | None = None,
        seed: int = 0,
        val_fraction: BelowOne = 0.0,
        limit: Count | None = None,
    ) -> None:
        super().__init__(tokenizer, train, val, seed=seed, val_fraction=val_fraction, limit=limit)
        self.batch_size, self.max_length, self.max_prompt_length = batch_size, max_length, max_prompt_length

    def train_dataloader(self) -> BatchLoader:
        return self._answers("train", shuffle=True)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        return self._answers("val") if "val" in self._rows else []

    def _answers(self, split: str, shuffle: bool = False) -> BatchLoader:
        return self._loader(split, type(self).collate, self.batch_size, shuffle)


class PreferenceDataModule(AnswersDataModule):
    """Preferences: chosen and rejected, ranked answers, or labelled rows (true is preferred to false).

    Args:
        batch_size: prompts per batch and process, each with all its answers.

    The other arguments are those of `AnswersDataModule` and `RowDataModule`.
    """

    kind: ClassVar[str] = "preference"
    collate = staticmethod(collate_preferences)

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        taken = [i for split in self._rows.values() for row in split for i in row.row_ids]
        first_id = max(taken, default=-1) + 1  # val is tokenised after train and continues its answer ids
        return preparation.preferences(rows, self.tokenizer, source, self.max_length, self.max_prompt_length, first_id)

    def check_rows(self, rows: Numbered, source: str) -> None:
        preparation.check_preferences(rows, source)

    def reference_batches(self) -> Iterator[PreferenceBatch]:
        """Yield every answer of every split once, regardless of this process's share: what a reference table covers.

        They are the batches of the first epoch and of validation. In half precision a row's numbers depend on the rows
        it is batched with, and the first loss is exact only if policy and reference see a row in the same batch.
        """
        yield from self.train_dataloader().of_every_rank()
        if "val" in self._rows:
            val = self.val_dataloader()
            assert isinstance(val, BatchLoader)
            yield from val.of_every_rank()


class PromptDataModule(RowDataModule):
    """Prompts for PPO, of rows of any format that has one. Its training batches come from the algorithm, which samples.

    Args:
        max_prompt_length: tokens of a prompt; longer ones keep their end.
        val_samples: responses to each held-out prompt at a validation.

    The other arguments are those of `RowDataModule`.
    """

    kind: ClassVar[str] = "prompts"

    @checked("data")
    def __init__(
        self,
        tokenizer: Any,
        train: Source,
        val: Source | None = None,
        max_prompt_length: Count | None = 512,
        seed: int = 0,
        val_fraction: BelowOne = 0.0,
        limit: Count | None = None,
        val_samples: Count = 1,
    ) -> None:
        super().__init__(tokenizer, train, val, seed=seed, val_fraction=val_fraction, limit=limit)
        self.max_prompt_length, self.val_samples = max_prompt_length, val_samples

    def tokenize(self, rows: Numbered, source: str) -> tuple[list[Any], Report]:
        return preparation.prompts(rows, self.tokenizer, source, self.max_prompt_length)

    def check_rows(self, rows: Numbered, source: str) -> None:
        preparation.check_prompts(rows, source)

    @property
    def train_prompts(self) -> list[PromptRow]:
        return self._rows["train"]

    @property
    def val_prompts(self) -> list[PromptRow]:
        return self._rows.get("val", [])

    def train_dataloader(self) -> Any:
        """Return the algorithm's own loader, which generates: Lightning asks the data module first."""
        assert self.trainer is not None
        return self.trainer.lightning_module.train_dataloader()

    def val_dataloader(self) -> PromptBatches:
        """Return this rank's share of the val prompts, in batches as large as the algorithm samples per iteration.

        Raises:
            UserError: there are fewer prompts than processes.
        """
        trainer = self.trainer
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        if 0 < len(self.val_prompts) < world_size:
            raise UserError(
                f"data.val or data.val_fraction: {len(self.val_prompts)} held-out prompts for {world_size} processes; "
                "hold out at least one for each"
            )
        rollout = getattr(getattr(trainer, "lightning_module", None), "rollout", None)
        prompts = [row for row in self.val_prompts for _ in range(self.val_samples)]
        return PromptBatches(prompts, rank, world_size, getattr(rollout, "batch_size", VAL_PROMPTS_PER_BATCH))


class PromptBatches:
    """Lists of prompts, as many and nearly as long on every rank. (Lightning would take a list as many loaders.)"""

    def __init__(
        self, prompts: list[PromptRow], rank: int, world_size: int, batch_size: int = VAL_PROMPTS_PER_BATCH
    ) -> None:
        self.prompts, self.rank, self.world_size, self.batch_size = prompts, rank, world_size, batch_size

    def __len__(self) -> int:
        return -(-len(self.prompts) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[PromptRow]]:
        for number in range(len(self)):
            yield self.prompts[self.rank + number * self.world_size :: len(self) * self.world_size]


def pad_id(tokenizer: Any) -> int:
    """Return the id to pad with: EOS if there is no pad token. Padding is never read, so any token will do.

    Raises:
        UserError: the tokenizer has neither.
    """
    found = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if found is None:
        raise UserError("the tokenizer has neither a pad nor an EOS token; set `eos_token` in its config")
    return found
