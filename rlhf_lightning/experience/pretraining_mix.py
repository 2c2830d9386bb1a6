"""PPO-ptx: a language-modelling loss mixed into PPO's updates (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from rlhf_lightning.data import SequenceBatch, SFTDataModule, TokenizedSequence, collate_sequences
from rlhf_lightning.data.batches import IGNORED
from rlhf_lightning.data.datamodules import pad_id
from rlhf_lightning.models import predict_tokens
from rlhf_lightning.rollout import endless_order
from rlhf_lightning.setting_rules import check_pretraining
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, NonNegative, Text


@checked("algorithm.ptx")
@dataclass
class PretrainingMix:
    """Adds coef * (mean negative log-likelihood of pretraining text) to every optimiser step's loss.

    Args:
        coef: weight of that loss (27.8 in the paper, whose PPO loss is a sum while ours is a mean); 0 turns it off.
        data: rows of any format that SFT reads; the loss is on all their tokens.
        batch_size: rows per optimiser step and process.
        max_length: most tokens per row.
    """

    coef: NonNegative = 0.0
    data: Text | None = None
    batch_size: Count = 8
    max_length: Count = 512
    rows: list[TokenizedSequence] = field(default_factory=list, init=False, repr=False)
    _hash: str | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        check_pretraining(self.coef, self.data)

    def load(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
        """Read and tokenise the text, once."""
        if self.coef and not self.rows:
            assert self.data is not None
            module = SFTDataModule(tokenizer, self.data, max_length=self.max_length, loss_on="all", seed=seed)
            module.setup("fit")
            self.rows, self.pad_id, self.seed = module.train_rows, pad_id(tokenizer), seed
            self._hash = module.fingerprint()

    def fingerprint(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> str | None:
        """Return the hash of the tokenised text; None without any."""
        self.load(tokenizer, seed)
        return self._hash

    def batch(self, step: int, rank: int, world_size: int) -> SequenceBatch | None:
        """Return the rows of optimiser step `step`, a function of (seed, step, rank).

        Their denominator is the step's number of tokens divided by the number of processes, so that the mean over
        processes is a mean over all tokens.
        """
        if not self.coef:
            return None
        count = self.batch_size * world_size
        picked = [self.rows[i] for i in endless_order(len(self.rows), step * count, count, "ptx", self.seed)]
        batch = collate_sequences(picked[rank::world_size], self.pad_id)
        batch.denominator = sum(row.weight for row in picked) / world_size
        return batch

    def loss(self, policy: nn.Module, rows: SequenceBatch) -> Tensor:
        """Return coef times the mean negative log-likelihood; every micro-batch of a step gets the same rows."""
        logprobs = predict_tokens(policy, rows.input_ids, rows.labels != IGNORED).logprobs
        return -self.coef * logprobs.sum() / rows.denominator
