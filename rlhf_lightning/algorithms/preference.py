"""The base of algorithms that learn from pairs of answers. One writes `pair_loss` and, if it has one, `reward`."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers, OfflineModule
from rlhf_lightning.data import PreferenceBatch


class PreferenceModule(OfflineModule):
    """Learns from chosen and rejected answers; a prompt counts once, however many pairs its answers make.

    Each pair of a prompt with P pairs weighs 1 / P, and a step's loss is the sum over its pairs divided by the prompts
    of the whole step, micro-batches and processes together.
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
    """Whether the loss compares means over an answer's tokens; `logps/*` are logged in its unit."""

    nll_coef = 0.0
    """Weight of the chosen answer's negative log-likelihood in `pair_loss`; above 0, `nll/chosen` is logged."""

    def pair_loss(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Return the loss of each pair, [M]."""
        raise NotImplementedError

    def reward(self, answers: Answers) -> Tensor | None:
        """Return what each answer is worth to the policy, [M], of which margins and accuracies are logged.

        None, the default: the algorithm defines no such reward.
        """
        return None

    def in_unit(self, answers: Answers) -> Answers:
        """The answers in the unit that the loss compares: whole answers, or means over their tokens."""
        return answers.per_token() if self.per_token else answers

    def pair_losses(self, batch: PreferenceBatch, split: str) -> Tensor:
        """Loss of every pair [M]; records the metrics."""
        answers = self.in_unit(self.answers(batch))  # once: an answer of several pairs is divided once
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
            accuracies = (margins.sign() + 1) / 2  # a tie counts one half
            rewards = {"chosen": better, "rejected": worse, "margins": margins, "accuracies": accuracies}
            metrics = {f"{prefix}rewards/{name}": value for name, value in rewards.items()}
        metrics[f"{prefix}logps/chosen"] = chosen.logps
        metrics[f"{prefix}logps/rejected"] = rejected.logps
        if self.nll_coef:
            metrics[f"{prefix}nll/chosen"] = -chosen.mean_logps
        return metrics

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the pair losses over the step's number of prompts."""
        return (self.pair_losses(batch, "train") * batch.pair_weights).sum() / batch.denominator

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """The same metrics on held-out pairs."""
        self.pair_losses(batch, "val")
