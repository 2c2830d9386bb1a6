"""Batches in a resumable, seeded order, with the loss's denominators known before the first backward pass.

Why not a torch `DataLoader`: Lightning would shard it a second time, and a resumed one restarts its epoch. Lightning
neither prefetches from nor re-shards a plain sized iterable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from rlhf_lightning.data.batches import Batch, Row
from rlhf_lightning.errors import UserError


class BatchLoader:
    """The batches of one rank.

    **Order.** The order of epoch e is a function of `(seed, e)` alone. A global batch is `batch_size * world_size`
    consecutive rows of it, and rank r takes every `world_size`-th of them. The last global batch may be partial. A rank
    left without a row gets one with its labels removed, so that every rank yields the same number of batches and every
    row counts once.

    **Denominators.** `weights[i]` is row i's share of the loss (label tokens, or 1 for a prompt). A window is
    `accumulate` consecutive batches, one optimiser step; the last may be shorter. With W the window's weight over all
    ranks, each of its batches has `denominator = W / (accumulate * world_size)`: Lightning divides every loss by
    `accumulate` (also in a short window) and DDP averages over ranks, so the gradient is exactly that of
    (sum of losses) / W. `rows` is the same for a weight of 1 per row.

    **Resume.** `state_dict` counts a batch when it is handed out; after `load_state_dict` the next iteration continues
    with the following batch, and later ones start at 0.

    Args:
        rows: tokenised rows.
        collate: rows -> batch; the loader sets the batch's `denominator`.
        batch_size: rows per batch and rank.
        weights: one per row.
        seed: determines the order, together with the epoch.
        shuffle: False keeps the rows' order.
        rank: which process this is, of `world_size`.
        world_size: number of processes.
        accumulate: batches per optimiser step (Trainer's `accumulate_grad_batches`).
        batches: batches per epoch that the trainer takes (`limit_train_batches`); the last window ends there.

    Raises:
        UserError: no rows, a batch size below 1, or the state of other data.
    """

    batch_sampler: None = None  # Lightning reads this on every validation loader that has a sampler

    def __init__(
        self,
        rows: Sequence[Any],
        collate: Callable[[list[Any]], Batch],
        batch_size: int,
        *,
        weights: Sequence[float],
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        batches: int | None = None,
    ) -> None:
        if not rows:
            raise UserError("data: there are no rows to make batches of; check data.train, data.val and data.limit")
        if batch_size < 1:
            raise UserError(f"data.batch_size: found {batch_size}; must be at least 1")
        if len(weights) != len(rows):
            raise ValueError(f"{len(weights)} weights for {len(rows)} rows")
        self.rows, self.collate, self.batch_size, self.weights = rows, collate, batch_size, weights
        self.seed, self.shuffle = seed, shuffle
        self.rank, self.world_size, self.accumulate, self.batches = rank, world_size, accumulate, batches
        self.epoch = 0
        self._position = 0  # batches of this epoch handed out
        self._start = 0  # first batch of the next iteration

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, also right after a mid-epoch resume."""
        return math.ceil(len(self.rows) / (self.batch_size * self.world_size))

    @property
    def sampler(self) -> BatchLoader:
        """Return itself: Lightning looks for `set_epoch` here."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch's order; the position within an epoch is kept only if the epoch stays the same."""
        if epoch != self.epoch:
            self.epoch, self._position, self._start = epoch, 0, 0

    def order(self) -> list[int]:
        """Return the row indices in the order of this epoch, over all ranks."""
        if not self.shuffle:
            return list(range(len(self.rows)))
        return np.random.default_rng([self.seed, self.epoch]).permutation(len(self.rows)).tolist()

    def _global_batches(self) -> list[list[int]]:
        order, size = self.order(), self.batch_size * self.world_size
        return [order[start : start + size] for start in range(0, len(order), size)]

    def windows(self) -> list[range]:
        """Return the batches of each optimiser step of an epoch; those that the trainer skips are listed one by one."""
        whole = len(self)
        end = whole if self.batches is None else min(self.batches, whole)
        windows = [range(start, min(start + self.accumulate, end)) for start in range(0, end, self.accumulate)]
        return windows + [range(step, step + 1) for step in range(end, whole)]

    def _denominators(self, totals: list[float]) -> list[float]:
        denominators: list[float] = []
        for window in self.windows():
            total = math.fsum(totals[step] for step in window) or 1.0  # nothing counts: the loss is 0 anyway
            denominators += [total / (self.accumulate * self.world_size)] * len(window)
        return denominators

    def _share(self, global_batch: list[int]) -> list[Row]:
        mine = global_batch[self.rank :: self.world_size]
        return [self.rows[i] for i in mine] if mine else [self.rows[global_batch[0]].emptied()]

    def __iter__(self) -> Iterator[Batch]:
        # A generator, so that nothing runs before the first next(): Lightning calls iter() before it sets the epoch.
        global_batches = self._global_batches()
        denominators = self._denominators([math.fsum(self.weights[i] for i in batch) for batch in global_batches])
        rows = self._denominators([float(len(batch)) for batch in global_batches])
        start, self._start = self._start, 0
        for step in range(start, len(global_batches)):
            batch = self.collate(self._share(global_batches[step]))
            batch.denominator, batch.rows = denominators[step], rows[step]
            self._position = step + 1
            yield batch

    def of_every_rank(self) -> Iterator[Any]:
        """Yield the batches of this epoch of all ranks, every row once; nothing is counted as handed out."""
        for global_batch in self._global_batches():
            for rank in range(self.world_size):
                if rows := global_batch[rank :: self.world_size]:
                    yield self.collate([self.rows[i] for i in rows])

    def _signature(self) -> dict[str, int]:
        return {
            "rows": len(self.rows),
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "seed": self.seed,
            "shuffle": int(self.shuffle),
        }

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self._position, "batches": len(self), **self._signature()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        whole_epoch = state["position"] >= state["batches"]
        changed = [
            f"{key} was {state[key]}, is {value}" for key, value in self._signature().items() if state[key] != value
        ]
        if changed and state["position"] and not whole_epoch:
            raise UserError(
                f"ckpt: it was saved after batch {state['position']} of {state['batches']} of an epoch, and the data "
                f"has changed since ({'; '.join(changed)}); resume with the old settings, or from the end of an epoch"
            )
        self.epoch = state["epoch"]
        self._position = self._start = len(self) if whole_epoch else state["position"]
