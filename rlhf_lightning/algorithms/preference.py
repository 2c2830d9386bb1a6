"""The base of algorithms that learn from pairs of answers. Each defines `pair_loss` and, if it has one, `reward`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers, OfflineModule
from rlhf_lightning.data import PreferenceBatch


class PreferenceModule(OfflineModule):
    """Learns from chosen and rejected answers; each prompt counts once, however many pairs its answers form.

    Each pair of a prompt with P pairs weighs 1 / P, and a step's loss is the weighted sum over its pairs divided by the
    number of prompts of the whole step: all micro-batches, all processes.
    """

    data: ClassVar[str] = "preference"
    title: ClassVar[str] = "preference optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    logs: ClassVar[tuple[str, ...]] = (
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "val/loss", "val/logps/chosen", "val/logps/rejected"),
        *("val/rewards/chosen", "val/rewards/rejected", "val/rewards/margins", "val/rewards/accuracies"),
    )

    per_token = False
    """True if the loss compares means over an answer's tokens; `logps/*` are logged in the same unit."""

    nll_coef = 0.0
    """Weight of the chosen answer's negative log-likelihood in `pair_loss`; above 0, `nll/chosen` is logged."""

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair, [M]."""
        raise NotImplementedError

    def reward(self, answers: Answers) -> Tensor | None:
        """Return what each answer is worth to the policy, [M]; margins and accuracies are logged from it.

        None, the default, if the algorithm defines no such reward.
        """
        return None

    def in_unit(self, answers: Answers) -> Answers:
        """Return the answers in the unit that the loss compares: whole answers, or means over their tokens."""
        return answers.per_token() if self.per_token else answers

    def pair_losses(self, batch: PreferenceBatch, split: str) -> Tensor:
        """Return the loss of every pair, [M], and record the metrics."""
        answers = self.in_unit(self.answers(batch))  # once: an answer in several pairs is divided only once
        chosen, rejected = (answers[rows] for rows in batch.pairs.unbind(dim=1))
        losses = self.pair_loss(chosen, rejected)
        with torch.no_grad():
            metrics = {f"{split}/loss": losses, **self._metrics("" if split == "train" else "val/", chosen, rejected)}
        total = batch.pair_weights.sum()
        for name, value in metrics.items():
            self.record(name, (value * batch.pair_weights).sum() / total.clamp(min=1e-9), total)
        return losses

    def _metrics(self, prefix: str, chosen: Answers, rejected: Answers) -> dict[str, Tensor]:
        metrics = {}
        better, worse = self.reward(chosen), self.reward(rejected)
        if better is not None and worse is not None:
            margins = better - worse
            accuracies = (margins.sign() + 1) / 2  # a tie counts as one half
            rewards = {"chosen": better, "rejected": worse, "margins": margins, "accuracies": accuracies}
            metrics = {f"{prefix}rewards/{name}": value for name, value in rewards.items()}
        metrics[f"{prefix}logps/chosen"] = chosen.logps
        metrics[f"{prefix}logps/rejected"] = rejected.logps
        if self.nll_coef:
            metrics[f"{prefix}nll/chosen"] = -chosen.mean_logps
        return metrics

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the pair losses divided by the step's number of prompts."""
        return (self.pair_losses(batch, "train") * batch.pair_weights).sum() / batch.denominator

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Record the same metrics on held-out pairs."""
        self.pair_losses(batch, "val")
