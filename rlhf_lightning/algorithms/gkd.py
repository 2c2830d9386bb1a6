"""Generalised knowledge distillation: a student learns a teacher's distributions on its own and on given answers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.offline import OfflineModule
from rlhf_lightning.data import SequenceBatch
from rlhf_lightning.models import end_of_sequence_ids, scatter_tokens
from rlhf_lightning.models.forward import bare_model
from rlhf_lightning.models.teacher import load_teacher
from rlhf_lightning.rollout import NativeEngine, RolloutEngine, SamplingSettings, seeded_generator
from rlhf_lightning.rollout.own_answers import answer_statistics, own_answers
from rlhf_lightning.setting_rules import check_teacher
from rlhf_lightning.training.row_limits import check_prompts
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, Dtype, Fraction, Temperature, Text


class GKDModule(OfflineModule):
    """Agarwal et al. 2024, algorithm 1: with probability lmbda a step is on the student's own answers to its prompts.

        loss = mean over rows of 1/|y| sum_t D_beta(teacher || student)(. | x, y_<t)

    D is the generalised Jensen-Shannon divergence; no gradient flows through the sampling of y.

    Args:
        teacher: a run folder, a Hugging Face folder or a hub name; frozen; must be given.
        beta: 0: forward KL(teacher || student); 1: reverse KL(student || teacher); between: their mixture.
        lmbda: probability that a step is on sampled answers rather than given ones.
        temperature: divides the logits of both, and those that answers are sampled from.
        max_new_tokens: longest sampled answer, in tokens.
        teacher_dtype: dtype of the teacher's weights; `auto`: the checkpoint's.
        engine: samples; null: the native engine.
    """

    data: ClassVar[str] = "sft"
    title: ClassVar[str] = "generalised knowledge distillation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "teacher")
    logs: ClassVar[tuple[str, ...]] = (
        *("divergence/sampled", "divergence/given", "rollout/response_length", "rollout/eos_rate", "val/loss"),
    )

    blown_up = 1e4  # the first step may be on answers that the student has imitated, and the next on others

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        teacher: Text | None = None,
        beta: Fraction = 0.5,
        lmbda: Fraction = 0.5,
        temperature: Temperature = 1.0,
        max_new_tokens: Count = 128,
        teacher_dtype: Dtype = "auto",
        engine: RolloutEngine | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher_path, self.teacher_dtype, self.engine = check_teacher(teacher), teacher_dtype, engine
        self.beta, self.lmbda, self.temperature, self.max_new_tokens = beta, lmbda, temperature, max_new_tokens
        self.teacher: Any = None

    def configure_model(self) -> None:
        """Build the student, without dropout, its teacher, and what samples."""
        super().configure_model()
        if self.teacher is None:
            self.teacher = load_teacher(self.teacher_path, self.tokenizer, self.teacher_dtype)
        if self.engine is None:
            ends = end_of_sequence_ids(bare_model(self.model), self.tokenizer)
            self.engine = NativeEngine(int(self.tokenizer.pad_token_id), ends)

    def on_fit_start(self) -> None:
        """Refuse rows whose prompts cannot be answered, or that a network cannot read."""
        super().on_fit_start()
        for network in (self.model, self.teacher.model):
            check_prompts(self, network, self.max_new_tokens if self.lmbda else 0)

    def teacher_hash(self) -> str | None:
        """Return the hash of the teacher; a run refuses to continue with another one."""
        return self.teacher.fingerprint() if self.teacher is not None else None

    def samples(self) -> bool:
        """Return whether this optimiser step is on sampled answers: the same for all its batches and processes."""
        seed = self.trainer.datamodule.seed  # type: ignore[attr-defined]
        drawn = torch.rand((), generator=seeded_generator("cpu", "gkd", seed, self.global_step))
        return float(drawn) < self.lmbda

    def answered(self, batch: SequenceBatch, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Return the prompts of a batch with the student's own answers: ids [B, L], and flags on the answers."""
        assert self.engine is not None
        key = ("gkd", self.trainer.datamodule.seed, self.global_step, batch_idx, self.global_rank)  # type: ignore[attr-defined]
        given = (batch, SamplingSettings(self.max_new_tokens, self.temperature), seeded_generator(self.device, *key))
        ids, flags, made = own_answers(self.engine, self.model, *given, int(self.tokenizer.pad_token_id))
        self.record_all(answer_statistics(batch, made))
        return ids, flags

    def row_divergences(self, input_ids: Tensor, flags: Tensor) -> Tensor:
        """Return the mean over each row's flagged tokens of the divergence from the teacher, [B], in nats."""
        found = self.teacher.divergences(self.model, input_ids, flags, self.beta, self.temperature)
        return scatter_tokens(found, flags).sum(dim=1) / flags.sum(dim=1).clamp(min=1)

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> Tensor:
        """Return the summed divergences of the rows divided by the step's number of rows."""
        counts, sampled = (batch.labels != -100).any(dim=1).float(), self.samples()
        rows = self.answered(batch, batch_idx) if sampled else (batch.input_ids, (batch.labels != -100).long())
        losses = self.row_divergences(*rows) * counts
        for name in ("train/loss", f"divergence/{'sampled' if sampled else 'given'}"):
            self.record(name, losses.detach().sum() / counts.sum().clamp(min=1), counts.sum())
        return losses.sum() / batch.rows

    def validation_step(self, batch: SequenceBatch, batch_idx: int) -> None:
        """Record the divergence on the given answers of held-out rows."""
        counts = (batch.labels != -100).any(dim=1).float()
        losses = self.row_divergences(batch.input_ids, (batch.labels != -100).long()) * counts
        self.record("val/loss", losses.sum() / counts.sum().clamp(min=1), counts.sum())
