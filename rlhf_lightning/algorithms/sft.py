"""Supervised fine-tuning."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import SequenceBatch
from rlhf_lightning.models import predict_tokens


class SFTModule(AlignmentModule):
    """Cross entropy of the labelled tokens (Ouyang et al. 2022, section 3.1).

        loss = - 1/N sum over labelled tokens t of log p(x_t | x_<t)

    N counts the labelled tokens of the whole optimiser step: all micro-batches, all processes. The data module chooses
    which tokens carry a label: the completion, or all. The EOS always does.
    """

    data: ClassVar[str] = "sft"
    title: ClassVar[str] = "supervised fine-tuning"
    roles: ClassVar[tuple[str, ...]] = ("policy",)
    logs: ClassVar[tuple[str, ...]] = ("val/loss", "val/perplexity")

    blown_up = 10.0  # guessing costs log(vocabulary), about 12 nats per token; a model far above that is broken

    def nll(self, batch: SequenceBatch) -> tuple[Tensor, int]:
        """Return the summed negative log-likelihood in nats, and the number of labelled tokens."""
        logprobs = predict_tokens(self.model, batch.input_ids, batch.labels != -100).logprobs
        return -logprobs.sum(), logprobs.numel()

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Return the summed loss divided by the step's token count."""
        total, tokens = self.nll(batch)
        self.record("train/loss", total / max(tokens, 1), weight=tokens)
        return total / batch.denominator

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Record the loss per labelled token."""
        total, tokens = self.nll(batch)
        self.record("val/loss", total / max(tokens, 1), weight=tokens)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity: exp of the mean loss, not the mean of exponentials."""
        logged = self.log_recorded("val/", on_step=False, on_epoch=True, prog_bar=True)
        if "val/loss" in logged:
            self.log("val/perplexity", torch.exp(logged["val/loss"]), batch_size=1, rank_zero_only=True)
