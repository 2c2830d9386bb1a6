"""Direct preference optimisation."""

from __future__ import annotations

import hashlib
import logging
import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.data import PreferenceBatch
from rlhf_lightning.durable import write_durably
from rlhf_lightning.errors import UserError
from rlhf_lightning.functional import answer_logps, dpo_loss, implicit_rewards
from rlhf_lightning.functional.preference import LOSS_TYPES, SMOOTHED
from rlhf_lightning.models import Reference, disable_dropout, predict_tokens, scatter_tokens, sequence_logprobs
from rlhf_lightning.models.transfer import to_device

log = logging.getLogger(__name__)


class DPOModule(AlignmentModule):
    """DPO and its relatives on chosen and rejected answers (Rafailov et al. 2023, equation 7).

        loss = - log sigmoid(beta (log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)))        for `sigmoid`

    The reference is the policy before training: its adapters switched off, or a frozen copy.

    Args:
        beta: strength of the pull to the reference, > 0.
        loss_type: one of those of `functional.dpo_loss`; ipo takes means per token, see `functional.answer_logps`.
        label_smoothing: probability that a label is wrong, in [0, 0.5). Of sigmoid (conservative DPO), robust and
            exo_pair only; the others refuse it.
        precompute_reference: compute the reference's log-probabilities once before training, keep them in
            `<default_root_dir>/reference_logprobs.pt`, and let go of a frozen copy.
    """

    data: ClassVar[str] = "preference"
    title: ClassVar[str] = "direct preference optimisation"
    roles: ClassVar[tuple[str, ...]] = ("policy", "reference")
    logs: ClassVar[tuple[str, ...]] = (
        *("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"),
        *("logps/chosen", "logps/rejected", "val/loss", "val/logps/chosen", "val/logps/rejected"),
        *("val/rewards/chosen", "val/rewards/rejected", "val/rewards/margins", "val/rewards/accuracies"),
    )

    def __init__(
        self,
        *args: Any,
        beta: float = 0.1,
        loss_type: str = "sigmoid",
        label_smoothing: float = 0.0,
        precompute_reference: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if loss_type not in LOSS_TYPES:
            raise UserError(f"algorithm.loss_type: {loss_type!r} is not one of {', '.join(LOSS_TYPES)}")
        if not 0 < beta < math.inf:
            raise UserError(f"algorithm.beta: found {beta}; must be above 0")
        if not 0 <= label_smoothing < 0.5:
            raise UserError(f"algorithm.label_smoothing: found {label_smoothing}; must be in [0, 0.5)")
        if label_smoothing and loss_type not in SMOOTHED:
            raise UserError(
                f"algorithm.label_smoothing: found {label_smoothing}, but loss_type={loss_type} has none; set it to 0, "
                f"or choose algorithm.loss_type={' | '.join(SMOOTHED)}"
            )
        self.beta, self.loss_type, self.label_smoothing = beta, loss_type, label_smoothing
        self.precompute_reference = precompute_reference
        self.reference: Reference | None = None
        self._reference_hash: str | None = None
        self.reference_table: dict[int, float] = {}

    def configure_model(self) -> None:
        """The policy without dropout, and its reference."""
        if self.model is None:
            self.model = self.load_trainable()
            disable_dropout(self.model)
            self.reference = Reference(self.model, self.new_network)
            self.shard(self.model)

    def on_fit_start(self) -> None:
        """Fill the reference table, from its file if that was made by this reference for these tokens.

        Raises:
            UserError: an answer whose first token nothing comes before: it has no probability.
        """
        super().on_fit_start()
        for report in getattr(self.trainer.datamodule, "report", {}).values():  # type: ignore[attr-defined]
            if report.without_prompt:
                raise UserError(
                    f"{report.source}, row {report.without_prompt[0]}: the prompt is empty and the tokenizer has no "
                    "BOS, so nothing predicts the first token of an answer; give the row a prompt, or remove it"
                )
        if not self.precompute_reference:
            return
        assert self.reference is not None
        path = Path(self.trainer.default_root_dir) / "reference_logprobs.pt"
        batches = [*self.trainer.datamodule.reference_batches()]  # type: ignore[attr-defined]
        tokens = hashlib.sha256(b"".join(x.numpy().tobytes() for b in batches for x in (b.row_ids, b.input_ids)))
        self._reference_hash = self.reference.fingerprint()
        key = self._reference_hash + tokens.hexdigest() + f" {self.precision}"
        table = self._saved_table(path, key)
        if not table:
            with self.trainer.precision_plugin.forward_context():
                for batch in batches:
                    logps = self.reference_logps(batch.to(self.device)).tolist()
                    table.update(zip(batch.row_ids.tolist(), logps, strict=True))
            if self.trainer.is_global_zero:
                path.parent.mkdir(parents=True, exist_ok=True)
                kept = {"key": key, "table": table}
                write_durably(path, lambda file: torch.save({**kept, "sha256": _digest(kept)}, file))
        self.reference_table = table
        if not self.reference.adapters_off:
            self.reference = None

    def _saved_table(self, path: Path, key: str) -> dict[int, float]:
        """The table of a file that holds what was computed for this key; empty otherwise."""
        if not path.is_file():
            return {}
        try:
            saved = torch.load(path, weights_only=True)
            whole = saved.pop("sha256") == _digest(saved)
        except Exception:  # torch's, zipfile's or pickle's own, for whatever lies there
            whole = False
        if not whole and self.trainer.is_global_zero:
            log.warning(
                f"{path} has changed since it was written; the reference's log-probabilities are computed again"
            )
        return saved["table"] if whole and saved["key"] == key else {}

    def reference_hash(self) -> str | None:
        """Return the hash of the reference, also once it is only a table."""
        if self.reference is not None and self._reference_hash is None:
            return self.reference.fingerprint()
        return self._reference_hash

    @torch.no_grad()
    def reference_logps(self, batch: PreferenceBatch) -> Tensor:
        """log pi_ref of every answer [N], in nats."""
        if self.reference_table:
            logps = [self.reference_table[i] for i in batch.row_ids.tolist()]
            return to_device(logps, batch.input_ids.device, torch.float32)
        assert self.reference is not None
        with self.reference.model(like=batch.input_ids) as model:
            return sequence_logprobs(model, batch.input_ids, batch.completion_mask)

    def pair_losses(self, batch: PreferenceBatch, split: str) -> Tensor:
        """Loss of every pair [M]; records the metrics."""
        reference = self.reference_logps(batch)
        tokens = predict_tokens(self.model, batch.input_ids, batch.completion_mask)
        policy = scatter_tokens(tokens.logprobs, batch.completion_mask).sum(dim=1)
        lengths = batch.completion_mask.sum(dim=1)
        policy, reference = (answer_logps(sums, lengths, self.loss_type) for sums in (policy, reference))
        chosen, rejected = batch.pairs.unbind(dim=1)
        losses = dpo_loss(
            policy[chosen],
            policy[rejected],
            reference[chosen],
            reference[rejected],
            beta=self.beta,
            label_smoothing=self.label_smoothing,
            loss_type=self.loss_type,
        )
        self._record(split, losses, policy, reference, batch)
        return losses

    def _record(self, split: str, losses: Tensor, policy: Tensor, reference: Tensor, batch: PreferenceBatch) -> None:
        weights = batch.pair_weights
        chosen, rejected = batch.pairs.unbind(dim=1)
        rewards = implicit_rewards(policy.detach(), reference, self.beta)
        margins = rewards[chosen] - rewards[rejected]
        prefix = "" if split == "train" else f"{split}/"
        metrics = {
            f"{split}/loss": losses,
            f"{prefix}rewards/chosen": rewards[chosen],
            f"{prefix}rewards/rejected": rewards[rejected],
            f"{prefix}rewards/margins": margins,
            f"{prefix}rewards/accuracies": (margins.sign() + 1) / 2,  # a tie counts one half
            f"{prefix}logps/chosen": policy[chosen],
            f"{prefix}logps/rejected": policy[rejected],
        }
        total = weights.sum()
        for name, value in metrics.items():
            self.record(name, (value * weights).sum() / total.clamp(min=1e-9), total)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        """The weighted sum of the pair losses over the step's number of prompts."""
        return (self.pair_losses(batch, "train") * batch.pair_weights).sum() / batch.denominator

    def validation_step(self, batch: PreferenceBatch, batch_idx: int) -> None:
        """Loss and implicit-reward accuracy on held-out pairs."""
        self.pair_losses(batch, "val")


def _digest(kept: dict[str, Any]) -> str:
    """The hash of a table with what it was computed from; floats are written out in full."""
    return hashlib.sha256(repr([kept["key"], sorted(kept["table"].items())]).encode()).hexdigest()
