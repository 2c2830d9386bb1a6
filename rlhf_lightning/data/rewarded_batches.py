"""What ILQL's training step receives, and the tokenised rows from which it is collated."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from rlhf_lightning.data.batches import Batch


class RewardedBatch(Batch):
    """Answers with a reward for each of their tokens.

    Attributes:
        input_ids: `[B, L]` long, right-padded: prompt, answer, EOS.
        attention_mask: `[B, L]` long, 1 on tokens.
        completion_mask: `[B, L]` long, 1 on the answer's tokens, including EOS.
        rewards: `[B, L]` float, 0 outside the answer; a reward of the whole answer is at its last token.
        weights: `[B]` float, 1; 0 for a row that only pads a rank's batch.
        denominator: number of answer tokens by which the summed, weighted loss is divided; see `BatchLoader`.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        rewards: Tensor,
        weights: Tensor,
        denominator: float,
    ) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.completion_mask = completion_mask
        self.rewards = rewards
        self.weights = weights
        self.denominator = denominator

    def __len__(self) -> int:
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class TokenizedRewarded:
    """A prompt, one answer, and a reward for each of its tokens."""

    prompt_ids: list[int]
    answer: list[int]
    rewards: list[float]
    share: float = 1.0

    @property
    def weight(self) -> float:
        """Return the row's share of the loss: its number of answer tokens."""
        return self.share * len(self.answer)

    def sequences(self) -> list[list[int]]:
        """Return the token sequences that a model reads."""
        return [self.prompt_ids + self.answer]

    def beside_tokens(self) -> str:
        """Return what else a run uses of the row: where the answer begins, and its rewards."""
        return repr((len(self.prompt_ids), self.rewards))

    def emptied(self) -> TokenizedRewarded:
        return replace(self, share=0.0)
