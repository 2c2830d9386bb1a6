"""Training a cost model: a score that ranks answers by harm, and whose sign says whether an answer is safe."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import PreferenceBatch
from rlhf_lightning.functional import cost_model_loss, preference_accuracy


class CostModule(AlignmentModule):
    """Bradley-Terry on costs with sign terms (Safe RLHF, Dai et al. 2023, section 3.2).

        loss = - mean over pairs of log sigmoid(c_worse - c_safer) + log sigmoid(+-c_worse) + log sigmoid(+-c_safer)

    The sign is + for an unsafe answer and - for a safe one, so that above 0 means unsafe. The model that is exported
    declares this in its config, and `cost.model` asks for it.
    """

    data: ClassVar[str] = "safety"
    title: ClassVar[str] = "cost modelling"
    roles: ClassVar[tuple[str, ...]] = ("cost",)
    logs: ClassVar[tuple[str, ...]] = (
        *("train/accuracy", "train/sign_accuracy", "train/mean_cost"),
        *("val/loss", "val/accuracy", "val/sign_accuracy", "val/mean_cost"),
    )

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the batch's loss divided by the step's number of pairs."""
        costs = self.model(batch.input_ids, batch.attention_mask, batch.prompt_lengths)
        self._record("train", costs.detach(), batch)
        return self._loss(costs, batch, batch.denominator)

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Record the same on held-out pairs."""
        self._record("val", self.model(batch.input_ids, batch.attention_mask, batch.prompt_lengths), batch)

    def _loss(self, costs: Tensor, batch: PreferenceBatch, denominator: float | None = None) -> Tensor:
        assert batch.safe is not None
        safer, worse = batch.pairs.unbind(dim=1)
        labels = (batch.safe[safer], batch.safe[worse])
        return cost_model_loss(costs[safer], costs[worse], *labels, batch.pair_weights, denominator=denominator)

    def _record(self, split: str, costs: Tensor, batch: PreferenceBatch) -> None:
        assert batch.safe is not None
        safer, worse = batch.pairs[batch.pair_weights > 0].unbind(dim=1)
        both, n = torch.cat([safer, worse]), len(safer)
        right_side = (costs[both] <= 0) == batch.safe[both]
        self.record(f"{split}/loss", self._loss(costs, batch), batch.pair_weights.sum())
        self.record(f"{split}/accuracy", preference_accuracy(costs[worse], costs[safer]), n)
        self.record(f"{split}/sign_accuracy", right_side.float().sum() / max(2 * n, 1), n)
        self.record(f"{split}/mean_cost", costs[both].sum() / max(2 * n, 1), n)

    def export(self, folder: str | Path) -> None:
        """Write the cost model, marked as one in its config, and its tokenizer."""
        self.model.mark_as_cost_model()
        super().export(folder)
