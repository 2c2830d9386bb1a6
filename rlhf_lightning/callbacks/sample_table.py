"""Samples of the policy during training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from rlhf_lightning.callbacks.lines import Lines
from rlhf_lightning.callbacks.mlflow_logger import SteadyMLFlowLogger
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Text

TABLE = "samples.json"
ROWS_PER_TABLE = 400
COLUMNS = ("epoch", "prompt", "response", "score", "kl")
EXTRA = "extra"  # what a reward function has passed to `log_extra`, by column
SPLIT = "split"  # "val" in the rows of held-out prompts


class SampleTable(Callback):
    """Keeps a few responses of each rollout: rows of epoch, prompt, response, score and kl (nats, summed per response).

    They go to `samples.jsonl` in the run folder and, with an MLFlowLogger, into the run's table `samples.json`. A table
    is sent whole; after 400 rows another one begins, `samples_2.json`. The module offers the rows as `last_samples:
    list[dict]`; a module without it is ignored. Responses to held-out prompts, offered as `last_val_samples` after a
    validation, follow with `split` set to val. A resumed run drops the rows of epochs that it repeats.

    Args:
        every_n_epochs: keep epochs 0, n, 2n, ... and the last one.
        rows: at most this many per kept epoch, the first of the rollout.
        path: the file; default `samples.jsonl` in the trainer's `default_root_dir`.
    """

    @checked("callbacks.samples")
    def __init__(self, every_n_epochs: Count = 1, rows: Count = 8, path: Text | Path | None = None) -> None:
        self.every_n_epochs = every_n_epochs
        self.rows = rows
        self.path = None if path is None else Path(path)
        self._lines: Lines | None = None
        self._begun = False
        self._complete = 0  # number of full tables in the store

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the number of rows and their hash."""
        if self._lines is not None:
            checkpoint["sample_table"] = self._lines.state()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raise UserError if the file does not begin with those rows."""
        Lines(self._file(trainer)).check(checkpoint.get("sample_table", {}))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begun = False

    @rank_zero_only
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._begun:
            return
        self._begun = True
        resumed = trainer.ckpt_path is not None
        self._lines = Lines(self._file(trainer))
        self._lines.keep(lambda row: resumed and row.get("epoch", 0) < trainer.current_epoch)

    @rank_zero_only
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        due = last or not trainer.current_epoch % self.every_n_epochs
        rows = self._rows(trainer, pl_module, "last_samples") if due else []
        rows += [{**row, SPLIT: "val"} for row in self._rows(trainer, pl_module, "last_val_samples")]
        if not rows:
            return
        self._lines = self._lines or Lines(self._file(trainer))
        self._lines.append(*(json.dumps(row, ensure_ascii=False) for row in rows))
        path = self._file(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, SteadyMLFlowLogger):
                logger.submit(lambda client, run_id: self._put(client, run_id, path), TABLE)
            elif isinstance(logger, MLFlowLogger) and logger.run_id is not None:
                self._put(logger.experiment, logger.run_id, path)

    def _rows(self, trainer: Trainer, pl_module: LightningModule, offered: str) -> list[dict[str, Any]]:
        samples = (getattr(pl_module, offered, None) or [])[: self.rows]
        kept = [{"epoch": trainer.current_epoch, **{key: _plain(row[key]) for key in COLUMNS[1:]}} for row in samples]
        extras = [{EXTRA: json.loads(json.dumps(row[EXTRA], default=str))} if EXTRA in row else {} for row in samples]
        return [row | extra for row, extra in zip(kept, extras, strict=True)]

    def _put(self, client: Any, run_id: str, path: Path) -> None:
        self._complete = put_table(client, run_id, path, self._complete)

    def _file(self, trainer: Trainer) -> Path:
        return self.path or Path(trainer.default_root_dir) / "samples.jsonl"


def put_table(client: Any, run_id: str, path: Path, first: int = 0) -> int:
    """Write the rows of `samples.jsonl` as the run's tables, replacing earlier ones; repeating it changes nothing.

    Args:
        client: MLflow's client of the store.
        run_id: the run there.
        path: the file with the rows.
        first: how many full tables the store has already.

    Returns:
        how many full tables it has afterwards.
    """
    tables: list[list[Any]] = []
    with path.open(encoding="utf-8", newline="\n") as lines:
        whole = (line for line in lines if line.endswith("\n") and line.strip())  # another thread may be writing a line
        for number, line in enumerate(whole):
            if number < first * ROWS_PER_TABLE:
                continue
            if number % ROWS_PER_TABLE == 0:
                tables.append([])
            row = json.loads(line)
            tables[-1].append([*(row.get(key) for key in COLUMNS), row.get(SPLIT, "train")])
    names = [table_name(number) for number in range(first + len(tables))]
    for name, rows in zip(names[first:], tables, strict=True):
        client.log_dict(run_id, {"columns": [*COLUMNS, SPLIT], "data": rows}, name)
    listed = json.dumps([{"path": name, "type": "table"} for name in names])
    if tables:
        client.set_tag(run_id, "mlflow.loggedArtifacts", listed)
    return len(names) - (bool(tables) and len(tables[-1]) < ROWS_PER_TABLE)


def table_name(number: int) -> str:
    """Return the name of the n-th table, counted from 0.

    >>> table_name(0), table_name(1)
    ('samples.json', 'samples_2.json')
    """
    return TABLE if number == 0 else f"samples_{number + 1}.json"


def _plain(value: Any) -> Any:
    """Return a tensor scalar as a number; JSON and the table accept nothing else."""
    return value.item() if hasattr(value, "item") else value
