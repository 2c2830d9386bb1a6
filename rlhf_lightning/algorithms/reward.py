"""Training a reward model on comparisons."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import PreferenceBatch
from rlhf_lightning.functional import calibration_error, centering_penalty, preference_accuracy, ranked_preference_loss
from rlhf_lightning.models import ScoreMoments
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative


class RewardModule(AlignmentModule):
    """Bradley-Terry over all pairs of a prompt (Ouyang et al. 2022, equation 1).

        loss = - 1/C(K, 2) sum over pairs of log sigmoid(r_better - r_worse - margin) + center_coef (r_b + r_w)^2

    A prompt with K ranked answers is one element: each answer is scored once, and the prompt counts once. K = 2 is the
    usual pair of a chosen and a rejected answer.

    Args:
        center_coef: weight of the centring penalty, the squared sum of a pair's two scores, which fixes the free
            constant (Eisenstein et al. 2023, who use 0.01).

    Attributes:
        moments: mean and standard deviation of the scores of all held-out answers, each counted once, at the last
            validation; exported with the model. None before the first validation.
    """

    data: ClassVar[str] = "preference"
    title: ClassVar[str] = "reward modelling"
    roles: ClassVar[tuple[str, ...]] = ("reward",)
    resumes: ClassVar[tuple[str, ...]] = ("moments",)
    logs: ClassVar[tuple[str, ...]] = (
        *("train/accuracy", "train/margin", "train/mean_reward"),
        *("val/loss", "val/accuracy", "val/margin", "val/mean_reward"),
        *("val/score_mean", "val/score_std", "val/calibration_error"),
    )

    @checked("algorithm")
    def __init__(self, *args: Any, center_coef: NonNegative = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.center_coef = center_coef
        self.validation: list[tuple[Tensor, Tensor]] = []
        self.held_out_scores: list[Tensor] = []
        self.moments: tuple[float, float] | None = None

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the batch's pair loss divided by the step's number of prompts."""
        scores = self.model(batch.input_ids, batch.attention_mask, batch.prompt_lengths)
        loss = ranked_preference_loss(
            scores, batch.pairs, batch.pair_weights, batch.margin, denominator=batch.denominator
        )
        if self.center_coef:
            loss = loss + self.center_coef * centering_penalty(
                scores, batch.pairs, batch.pair_weights, denominator=batch.denominator
            )
        self._record("train", scores.detach(), batch)
        return loss

    def _record(self, split: str, scores: Tensor, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Record the batch's metrics; return the scores of the better and of the worse answers that count."""
        pairs = batch.pairs[batch.pair_weights > 0]  # a pair of weight 0 only keeps processes in step
        better, worse = scores[pairs[:, 0]], scores[pairs[:, 1]]
        n = len(better)
        loss = ranked_preference_loss(scores, batch.pairs, batch.pair_weights, batch.margin)
        self.record(f"{split}/loss", loss, batch.pair_weights.sum())
        self.record(f"{split}/accuracy", preference_accuracy(better, worse), n)
        self.record(f"{split}/margin", (better - worse).sum() / max(n, 1), n)
        self.record(f"{split}/mean_reward", (better + worse).sum() / max(2 * n, 1), n)
        return better, worse

    def on_validation_epoch_start(self) -> None:
        """Discard what an unfinished validation left behind."""
        self.validation.clear()
        self.held_out_scores.clear()

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Record accuracy, margin and calibration on held-out pairs, and the scores' mean and standard deviation."""
        scores = self.model(batch.input_ids, batch.attention_mask, batch.prompt_lengths)
        self.validation.append(self._record("val", scores, batch))
        compared = batch.pairs[batch.pair_weights > 0].unique()  # an answer in several pairs counts once
        self.held_out_scores.append(scores[compared])

    def on_validation_epoch_end(self) -> None:
        """Log the expected calibration error of sigmoid(margin), with each pair counted in both orders."""
        super().on_validation_epoch_end()
        better, worse = (torch.cat(side) for side in zip(*self.validation, strict=True))
        self.validation.clear()
        confidence = logsigmoid((better - worse).abs()).exp()
        error = calibration_error(confidence, (better > worse).float())
        self.log("val/calibration_error", error, sync_dist=True, batch_size=len(better))
        former = self.moments
        self._log_moments(torch.cat(self.held_out_scores))
        if self.trainer.sanity_checking:
            self.moments = former  # the sanity check before training sees only a few answers
        self.held_out_scores.clear()

    def _log_moments(self, scores: Tensor) -> None:
        """Log the mean and standard deviation over the answers of all processes."""
        mine = torch.stack([scores.new_tensor(len(scores)), scores.mean(), scores.var(correction=0)])
        n, means, variances = self.gather(mine.nan_to_num()).unbind(dim=1)  # NaN on a process without answers
        total = (n * means).sum() / n.sum()
        std = ((n * (variances + (means - total) ** 2)).sum() / n.sum()).sqrt()
        self.moments = (float(total), float(std))
        self.log_dict({"val/score_mean": total, "val/score_std": std}, rank_zero_only=True, batch_size=1)

    def export(self, folder: str | Path) -> None:
        """Write the reward model, with the moments in its config, and its tokenizer."""
        self.model.keep_moments(ScoreMoments(*self.moments) if self.moments else None)
        super().export(folder)
