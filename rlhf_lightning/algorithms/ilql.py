"""Implicit language Q-learning, on answers with rewards: values from given answers, and decoding that follows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms.offline import OfflineModule
from rlhf_lightning.data import RewardedBatch
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import ilql_losses
from rlhf_lightning.models import predict_tokens, scatter_tokens
from rlhf_lightning.models.forward import flagged, hidden_width, output_width
from rlhf_lightning.models.ilql_heads import ILQLHeads, KeptWeights, export_with_heads
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Between, Count, Fraction, NonNegative, Share


class ILQLModule(OfflineModule):
    """Snell et al. 2022: twin Q heads, their targets, a V head and the policy on one trunk.

        loss = sum_k (Q_k - r - gamma V')^2 + |tau - 1(e < 0)| e^2 - cql_weight sum_k log softmax(Q_k)_a
               - awac_weight exp(awac_beta e) log pi(a),        e = min_k Q^_k - V

    Means over the answers' tokens of the whole step. Decoding samples from log pi + beta (min_k Q^_k - V).

    Args:
        beta: b, the strength of decoding, per unit of reward; exported with the heads, not read in training.
        gamma: discount per token, in [0, 1].
        expectile: tau, between 0 and 1: how close V is to the best action that the answers contain.
        cql_weight: weight of the conservative term, which keeps the values of other tokens low.
        awac_weight: weight of the policy's imitation.
        awac_beta: how much more tokens of high advantage are imitated; 0: all alike.
        target_rate: how far the targets move towards the heads, in (0, 1].
        target_interval: optimiser steps between two such moves.
    """

    data: ClassVar[str] = "rewarded"
    title: ClassVar[str] = "implicit language Q-learning"
    roles: ClassVar[tuple[str, ...]] = ("policy", "q_heads")
    resumes: ClassVar[tuple[str, ...]] = ("targets",)
    logs: ClassVar[tuple[str, ...]] = (
        *("q/loss", "q/mean", "q/conservative", "value/loss", "value/mean", "nll/policy"),
        *("val/loss", "val/q/loss", "val/q/mean", "val/q/conservative", "val/value/loss"),
        *("val/value/mean", "val/nll/policy"),
    )

    @checked("algorithm")
    def __init__(
        self,
        *args: Any,
        beta: NonNegative = 8.0,
        gamma: Fraction = 0.99,
        expectile: Between = 0.7,
        cql_weight: NonNegative = 0.25,
        awac_weight: NonNegative = 1.0,
        awac_beta: NonNegative = 0.0,
        target_rate: Share = 0.005,
        target_interval: Count = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if awac_beta and not awac_weight:
            raise UserError("algorithm.awac_beta: it has no effect with algorithm.awac_weight=0; use 0, or a weight")
        self.beta, self.gamma, self.expectile = beta, gamma, expectile
        self.cql_weight, self.awac_weight, self.awac_beta = cql_weight, awac_weight, awac_beta
        self.target_rate, self.target_interval = target_rate, target_interval
        self.heads: Any = None

    def configure_model(self) -> None:
        """Build the policy, without dropout, and its heads."""
        super().configure_model()
        if self.heads is None:
            self.heads = ILQLHeads(hidden_width(self.model), output_width(self.model))
            self.shard(self.heads)

    @property
    def targets(self) -> KeptWeights:
        """Return the target heads' weights, which a checkpoint stores."""
        return KeptWeights(self.heads.targets)

    def loss(self, batch: RewardedBatch, split: str) -> Tensor:
        """Return the weighted sum of the losses of a batch's tokens, and record their means."""
        mask = batch.completion_mask
        tokens = predict_tokens(self.model, batch.input_ids, mask)
        actions = flagged(batch.input_ids, mask.bool(), len(tokens.hidden))
        q, target_q, values, q_logprobs = self.heads(tokens.hidden, actions, self.cql_weight > 0).scattered(mask)
        logprobs = scatter_tokens(tokens.logprobs, mask)
        given = (q, target_q, values, batch.rewards, q_logprobs, logprobs, mask)
        terms = ilql_losses(*given, self.gamma, self.expectile, self.awac_beta)
        losses = terms.q + terms.value + self.cql_weight * terms.conservative + self.awac_weight * terms.policy
        metrics = {"q/loss": terms.q, "q/mean": q.mean(dim=0), "value/loss": terms.value, "value/mean": values}
        metrics |= {"nll/policy": -logprobs, **({"q/conservative": terms.conservative} if self.cql_weight else {})}
        metrics = {name if split == "train" else f"val/{name}": value for name, value in metrics.items()}
        weights = batch.weights.unsqueeze(1) * mask
        total = weights.sum()
        for name, value in {f"{split}/loss": losses, **metrics}.items():
            self.record(name, (value.detach() * weights).sum() / total.clamp(min=1e-9), total)
        return (losses * weights).sum()

    def training_step(self, batch: RewardedBatch, batch_idx: int) -> Tensor:
        """Return the summed losses divided by the step's number of answer tokens."""
        return self.loss(batch, "train") / batch.denominator

    def validation_step(self, batch: RewardedBatch, batch_idx: int) -> None:
        """Record the same means over held-out answers."""
        self.loss(batch, "val")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then let the targets follow the heads."""
        super().optimizer_step(*args, **kwargs)
        if (self.global_step + 1) % self.target_interval == 0:  # Lightning counts this step later
            self.heads.follow(self.target_rate)

    def export(self, folder: str | Path) -> None:
        """Write the policy, and beside it the target Q heads, the V head and `beta`, which decoding reads."""
        export_with_heads(self.model, self.heads, self.tokenizer, folder, self.beta)
