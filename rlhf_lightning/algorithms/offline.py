"""The base of algorithms that learn from given answers: log-probabilities under the policy and its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import MismatchedBatch, PreferenceBatch, UnpairedBatch
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import answer_logps
from rlhf_lightning.models import Reference, disable_dropout, predict_tokens, scatter_tokens, sequence_logprobs
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.training.reference_table import Table, reference_table


@dataclass(frozen=True)
class Answers:
    """What a loss may read about M answers.

    Attributes:
        logps: [M], log-probability of the whole answer under the policy, nats.
        lengths: [M], tokens per answer, including EOS.
        ref_logps: [M], `logps` under the reference; None for an algorithm without one.
    """

    logps: Tensor
    lengths: Tensor
    ref_logps: Tensor | None = None

    @property
    def mean_logps(self) -> Tensor:
        """Return the log-probability per token under the policy, [M], nats."""
        return answer_logps(self.logps, self.lengths, per_token=True)

    @property
    def log_ratios(self) -> Tensor:
        """Return log pi - log pi_ref of the whole answers, [M], nats.

        Raises:
            ValueError: the algorithm has no reference.
        """
        return self.logps - self.reference

    @property
    def reference(self) -> Tensor:
        """Return `ref_logps`. Raises ValueError if the algorithm has no reference."""
        if self.ref_logps is None:
            raise ValueError("there is no reference; an algorithm that needs one has 'reference' in its `roles`")
        return self.ref_logps

    def per_token(self) -> Answers:
        """Return the same answers with means over their tokens instead of sums, as if each had one token."""
        reference = self.ref_logps
        if reference is not None:
            reference = answer_logps(reference, self.lengths, per_token=True)
        return Answers(self.mean_logps, torch.ones_like(self.lengths), reference)

    def __getitem__(self, rows: Tensor) -> Answers:
        reference = None if self.ref_logps is None else self.ref_logps[rows]
        return Answers(self.logps[rows], self.lengths[rows], reference)


class OfflineModule(AlignmentModule):
    """The base of algorithms that learn from given answers: a policy without dropout and, optionally, a reference.

    An algorithm has a reference, the policy before training, if its `roles` include one: the policy with its adapters
    switched off, or a frozen copy.
    """

    precompute_reference = False
    """Compute the reference's log-probabilities once, before training, and release the frozen copy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference: Reference | None = None
        self.reference_table: Table = {}
        self._reference_hash: str | None = None

    def configure_model(self) -> None:
        """Build the policy, without dropout, and its reference."""
        if self.model is None:
            self.model = self.load_trainable()
            disable_dropout(self.model)
            if "reference" in self.roles:
                self.reference = Reference(self.model, self.new_network)
            self.shard(self.model)

    def on_fit_start(self) -> None:
        """Fill the reference table, from its file if this reference made it for these tokens.

        Raises:
            UserError: an answer whose first token has nothing before it, and so no probability.
        """
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for report in getattr(data, "report", {}).values():
            if report.without_prompt:
                raise UserError(
                    f"{report.source}, row {report.without_prompt[0]}: the prompt is empty and the tokenizer has no "
                    "BOS, so nothing predicts the first token of an answer; give the row a prompt, or remove it"
                )
        if self.precompute_reference:
            assert self.reference is not None
            self._reference_hash = self.reference.fingerprint()
            batches = [*data.reference_batches()]
            self.reference_table = reference_table(self, batches, self.reference_logps, self._reference_hash)
            if not self.reference.adapters_off:
                self.reference = None

    def reference_hash(self) -> str | None:
        """Return the hash of the reference, even if only its table is left; None for an algorithm without one."""
        if self.reference is not None and self._reference_hash is None:
            return self.reference.fingerprint()
        return self._reference_hash

    @torch.no_grad()
    def reference_logps(self, batch: PreferenceBatch | UnpairedBatch | MismatchedBatch) -> Tensor:
        """Return log pi_ref of every answer, [N], in nats."""
        if self.reference_table:
            assert isinstance(batch, PreferenceBatch)
            logps = [self.reference_table[i] for i in batch.row_ids.tolist()]
            return to_device(logps, batch.input_ids.device, torch.float32)
        assert self.reference is not None
        with self.reference.model(like=batch.input_ids) as model:
            return sequence_logprobs(model, batch.input_ids, batch.completion_mask)

    def answers(self, batch: PreferenceBatch | UnpairedBatch | MismatchedBatch) -> Answers:
        """Return every answer of a batch, [N], under the policy and, if the algorithm has one, its reference."""
        reference = self.reference_logps(batch) if "reference" in self.roles else None
        tokens = predict_tokens(self.model, batch.input_ids, batch.completion_mask)
        policy = scatter_tokens(tokens.logprobs, batch.completion_mask).sum(dim=1)
        return Answers(policy, batch.completion_mask.sum(dim=1), reference)
