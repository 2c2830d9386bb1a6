"""The base of algorithms that learn from single labelled answers. Each defines `answer_loss` and `reward`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.offline import Answers, OfflineModule
from rlhf_lightning.data import MismatchedBatch, UnpairedBatch
from rlhf_lightning.training.row_limits import check_mismatched


class UnpairedModule(OfflineModule):
    """Learns from single answers, desirable or not, judged against z, the policy's distance from its reference.

        z = max(0, mean over the step of log pi(y' | x) - log pi_ref(y' | x)),    no gradient

    y' is an answer to a different prompt than x. The mean is over the whole optimiser step, all micro-batches and
    processes: the step's first micro-batch carries the mismatched pairs of all of them. Validation uses one z, over all
    held-out answers.
    """

    data: ClassVar[str] = "unpaired"
    title: ClassVar[str] = "learning from labelled answers"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    logs: ClassVar[tuple[str, ...]] = (
        *("rewards/chosen", "rewards/rejected", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "kl/reference_point"),
        *("val/loss", "val/rewards/chosen", "val/rewards/rejected", "val/rewards/accuracies"),
        *("val/logps/chosen", "val/logps/rejected", "val/kl/reference_point"),
    )

    def answer_loss(self, answers: Answers, desirable: Tensor, kl: Tensor) -> Tensor:
        """Return the loss of each answer, [N].

        Args:
            answers: N answers.
            desirable: [N], boolean.
            kl: z, a scalar without gradient, nats.
        """
        raise NotImplementedError

    def reward(self, answers: Answers) -> Tensor:
        """Return what each answer is worth to the policy, [N]; reward(z) is the reference point."""
        raise NotImplementedError

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.z: Tensor | None = None  # of the current step
        self._held_out: list[tuple[Answers, Tensor, Tensor]] = []
        self._held_out_sums: list[Tensor] = []

    def on_fit_start(self) -> None:
        """Refuse rows that the model cannot read, mismatched pairs included."""
        super().on_fit_start()
        check_mismatched(self, self.model)

    @torch.no_grad()
    def log_ratio_sums(self, batches: Iterable[MismatchedBatch]) -> Tensor:
        """Return the sum of the log-ratios of mismatched pairs and their number, [2], on this process."""
        sums = [
            torch.stack([(self.answers(batch).log_ratios * batch.weights).sum(), batch.weights.sum()])
            for batch in batches
        ]
        return torch.stack(sums).sum(dim=0)

    def reference_point(self, sums: Tensor) -> Tensor:
        """Return z from the sums of all processes."""
        total, count = self.gather(sums).sum(dim=0)
        return (total / count.clamp(min=1)).clamp(min=0)

    def training_step(self, batch: UnpairedBatch, batch_idx: int) -> Tensor:
        """Return the weighted sum of the answers' losses divided by the step's number of answers."""
        if batch.mismatched:
            self.z = self.reference_point(self.log_ratio_sums(batch.mismatched))
        assert self.z is not None
        answers = self.answers(batch)
        losses = self.answer_loss(answers, batch.desirable, self.z)
        self._record("train", losses, answers, batch.desirable, batch.weights, self.z)
        return (losses * batch.weights).sum() / batch.denominator

    def on_validation_epoch_start(self) -> None:
        """Discard what an unfinished validation left behind."""
        self._held_out.clear()
        self._held_out_sums.clear()

    def validation_step(self, batch: UnpairedBatch, batch_idx: int) -> None:
        """Keep what the loss reads; it is computed at the end, when z is known."""
        self._held_out.append((self.answers(batch), batch.desirable, batch.weights))
        self._held_out_sums.append(self.log_ratio_sums(batch.mismatched))

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all held-out answers."""
        kl = self.reference_point(torch.stack(self._held_out_sums).sum(dim=0))
        for answers, desirable, weights in self._held_out:
            self._record("val", self.answer_loss(answers, desirable, kl), answers, desirable, weights, kl)
        self.on_validation_epoch_start()
        super().on_validation_epoch_end()

    @torch.no_grad()
    def _record(
        self, split: str, losses: Tensor, answers: Answers, desirable: Tensor, weights: Tensor, kl: Tensor
    ) -> None:
        prefix = "" if split == "train" else "val/"
        point = kl.view(1)
        rewards, at_reference = self.reward(answers), self.reward(Answers(point, torch.ones_like(point), point * 0))
        right = torch.where(desirable, 1.0, -1.0) * (rewards - at_reference)
        counts = {"chosen": weights * desirable, "rejected": weights * ~desirable}
        for side, count in counts.items():
            for name, value in (("rewards", rewards), ("logps", answers.logps)):
                mean = (value * count).sum() / count.sum().clamp(min=1e-9)
                self.record(f"{prefix}{name}/{side}", mean, count.sum())
        total = weights.sum()
        for name, value in ((f"{split}/loss", losses), (f"{prefix}rewards/accuracies", (right.sign() + 1) / 2)):
            self.record(name, (value * weights).sum() / total.clamp(min=1e-9), total)
        self.record(f"{prefix}kl/reference_point", kl, total)
