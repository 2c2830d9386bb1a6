"""Training a process reward model on solutions whose steps are labelled right or wrong."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import StepBatch
from rlhf_lightning.data.batches import IGNORED
from rlhf_lightning.functional import process_reward_loss

log = logging.getLogger(__name__)


class ProcessRewardModule(AlignmentModule):
    """Classifies each step of a solution as right or wrong (Uesato et al. 2022; Lightman et al. 2023).

        loss = - 1/K sum over steps of log p(label of the step | prompt, steps up to it)

    The two classes are read at the last token of each step, and nowhere else. Every step counts once, whatever the
    number of steps of its solution.
    """

    data: ClassVar[str] = "steps"
    title: ClassVar[str] = "process reward modelling"
    roles: ClassVar[tuple[str, ...]] = ("reward",)
    logs: ClassVar[tuple[str, ...]] = (
        *("train/step_accuracy", "train/right_steps"),
        *("val/loss", "val/step_accuracy", "val/right_steps", "val/brier_score"),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.step_separator: str | None = None

    def on_fit_start(self) -> None:
        """Refuse rows that the model cannot read, warn of labels that are all the same, and note the separator."""
        super().on_fit_start()
        rows = getattr(self.trainer.datamodule, "train_rows", [])  # type: ignore[attr-defined]
        labels = [label for row in rows for label in row.right if label != IGNORED]
        if len({*labels}) == 1:
            log.warning(f"data.train: all {len(labels)} steps are {'right' if labels[0] else 'wrong'}")
        self.step_separator = getattr(self.trainer.datamodule, "step_separator", None)  # type: ignore[attr-defined]

    def steps(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Return logits [K, 2] and labels [K] of the batch's steps; a label of -100 does not count."""
        logits = self.model(batch.input_ids, batch.ends, batch.prompt_lengths)
        return logits, batch.labels[batch.ends]

    def training_step(self, batch: StepBatch, batch_idx: int) -> Tensor:
        """Return the batch's cross-entropy divided by the step's number of labelled steps."""
        logits, labels = self.steps(batch)
        self._record("train", logits.detach(), labels)
        return process_reward_loss(logits, labels, denominator=batch.denominator)

    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Record loss, accuracy and Brier score of held-out steps."""
        self._record("val", *self.steps(batch))

    @torch.no_grad()
    def _record(self, split: str, logits: Tensor, labels: Tensor) -> None:
        counted = labels != IGNORED
        n, right = counted.sum(), (labels == 1).float()
        margin = logits[:, 1] - logits[:, 0]
        agrees = torch.heaviside(margin * (2 * right - 1), margin.new_full((), 0.5))
        self.record(f"{split}/loss", process_reward_loss(logits, labels), n)
        figures = {"step_accuracy": agrees, "right_steps": right}
        if split == "val":
            figures["brier_score"] = (margin.sigmoid() - right).square()
        for name, value in figures.items():
            self.record(f"{split}/{name}", (value * counted).sum() / n.clamp(min=1), n)

    def export(self, folder: str | Path) -> None:
        """Write the model, with its step separator in its config, and its tokenizer."""
        if self.step_separator is not None:
            self.model.keep_separator(self.step_separator)
        super().export(folder)
