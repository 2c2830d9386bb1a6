"""What a training step receives, and the tokenised rows from which it is collated.

Batches are plain classes, deliberately neither dicts nor dataclasses: under `bf16-true` Lightning walks into both and
casts every float tensor it finds. It leaves any other object alone and moves it with its `.to(device)`.

Shapes: B rows, N answers, M pairs, L tokens.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

IGNORED = -100  # the label that torch's cross-entropy ignores


class Row(Protocol):
    """What the loader needs of a tokenised row."""

    def emptied(self) -> Self:
        """Return the same row without any share in the loss."""
        ...


class Batch:
    """Tensors that move to a device together. The batch's summed loss is divided by `denominator`.

    A loss that is a mean over rows divides their sum by `rows` instead; a loader sets both.
    """

    denominator: float
    rows: float = 1.0

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Return a copy with every tensor on `device`; dtypes stay.

        From pageable memory CUDA copies immediately; a blocking call would wait for everything queued on the GPU.
        """
        moved = copy.copy(self)
        non_blocking = non_blocking or torch.device(device).type == "cuda"
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(moved, name, value.to(device, non_blocking=non_blocking))
        return moved

    def __repr__(self) -> str:
        fields = (f"{k}={list(v.shape) if isinstance(v, Tensor) else v}" for k, v in vars(self).items())
        return f"{type(self).__name__}({', '.join(fields)})"


class SequenceBatch(Batch):
    """Sequences for supervised fine-tuning.

    Attributes:
        input_ids: `[B, L]` long, right-padded.
        attention_mask: `[B, L]` long, 1 on tokens. Derived from lengths: pad may be the same token as EOS.
        labels: `[B, L]` long, not shifted (the label of position t is `input_ids[t]`), -100 where there is no loss.
            Position 0 is never predicted, so it is always -100.
        denominator: number of label tokens by which the summed loss is divided; see `BatchLoader`.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, denominator: float) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.labels = labels
        self.denominator = denominator

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class PreferenceBatch(Batch):
    """Answers to prompts and the preferences among them, for reward models and DPO.

    Attributes:
        input_ids: `[N, L]` long, right-padded: prompt, answer, EOS. The answers to a prompt are adjacent.
        attention_mask: `[N, L]` long, 1 on tokens.
        completion_mask: `[N, L]` long, 1 on the answer's tokens, including EOS.
        pairs: `[M, 2]` long: row of the better answer, row of the worse.
        margin: `[M]` float, how much better, or None if no row of the batch states it.
        pair_weights: `[M]` float, 1 / (pairs of that prompt), so that a prompt counts once however many answers it has
            (Ouyang et al. 2022, eq. 1: 1 / C(K, 2)); 0 for a row that only pads a rank's batch.
        row_ids: `[N]` long, an id of the answer, the same in every epoch and process, unique across train and val.
        safe: `[N]` bool, whether the answer is safe, or None if the rows do not say.
        denominator: number of prompts by which the summed, weighted loss is divided; see `BatchLoader`.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        pairs: Tensor,
        margin: Tensor | None,
        pair_weights: Tensor,
        row_ids: Tensor,
        denominator: float,
        safe: Tensor | None = None,
    ) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.completion_mask = completion_mask
        self.safe = safe
        self.pairs = pairs
        self.margin = margin
        self.pair_weights = pair_weights
        self.row_ids = row_ids
        self.denominator = denominator

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def prompt_lengths(self) -> Tensor:
        """Return the number of tokens before each answer, `[N]` long; a prompt's answers share them."""
        return self.completion_mask.argmax(dim=1)


class MismatchedBatch(Batch):
    """Prompts, each with the answer to a different prompt.

    Attributes:
        input_ids: `[N, L]` long, right-padded: prompt, the other prompt's answer.
        completion_mask: `[N, L]` long, 1 on the answer's tokens.
        weights: `[N]` float, 1; 0 for a row that only pads a rank's batch, or that has no other prompt to pair with.
    """

    def __init__(self, input_ids: Tensor, completion_mask: Tensor, weights: Tensor) -> None:
        self.input_ids = input_ids
        self.completion_mask = completion_mask
        self.weights = weights


class UnpairedBatch(Batch):
    """Answers that are desirable or not.

    Attributes:
        input_ids: `[N, L]` long, right-padded: prompt, answer, EOS.
        attention_mask: `[N, L]` long, 1 on tokens.
        completion_mask: `[N, L]` long, 1 on the answer's tokens, including EOS.
        desirable: `[N]` bool.
        weights: `[N]` float, 1; 0 for a row that only pads a rank's batch.
        denominator: number of answers by which the summed, weighted loss is divided; see `BatchLoader`.
        mismatched: in the first batch of an optimiser step, one for each batch of that step; see `UnpairedLoader`.
    """

    def __init__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_mask: Tensor,
        desirable: Tensor,
        weights: Tensor,
        denominator: float,
    ) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.completion_mask = completion_mask
        self.desirable = desirable
        self.weights = weights
        self.denominator = denominator
        self.mismatched: tuple[MismatchedBatch, ...] = ()

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        moved = super().to(device, non_blocking)
        moved.mismatched = tuple(batch.to(device, non_blocking) for batch in self.mismatched)
        return moved


@dataclass(frozen=True)
class TokenizedSequence:
    """A row of supervised fine-tuning: `labels` are `input_ids`, or -100 where there is no loss."""

    input_ids: list[int]
    labels: list[int]

    @property
    def weight(self) -> float:
        """Return the row's share of the loss: its number of label tokens."""
        return float(len(self.labels) - self.labels.count(IGNORED))

    def sequences(self) -> list[list[int]]:
        """Return the token sequences that a model reads."""
        return [self.input_ids]

    def beside_tokens(self) -> str:
        """Return what else a run uses of the row: which tokens are trained on."""
        return "".join("0" if label == IGNORED else "1" for label in self.labels)

    def emptied(self) -> TokenizedSequence:
        return replace(self, labels=[IGNORED] * len(self.labels))


@dataclass(frozen=True)
class TokenizedPreference:
    """A prompt, its answers, and which answer (first of a pair) was preferred to which (second)."""

    prompt_ids: list[int]
    answers: list[list[int]]
    pairs: list[tuple[int, int]]
    row_ids: list[int]
    margin: float | None = None
    weight: float = 1.0
    safe: list[bool] | None = None

    def sequences(self) -> list[list[int]]:
        """Return the token sequences that a model reads."""
        return [self.prompt_ids + answer for answer in self.answers]

    def beside_tokens(self) -> str:
        """Return what else a run uses of the row: where answers begin, which were preferred, and by how much."""
        return repr((len(self.prompt_ids), self.pairs, self.margin, *(self.safe or ())))

    def emptied(self) -> TokenizedPreference:
        return replace(self, weight=0.0)


@dataclass(frozen=True)
class TokenizedAnswer:
    """A prompt, one answer, and whether the answer is desirable."""

    prompt_ids: list[int]
    answer: list[int]
    desirable: bool
    weight: float = 1.0

    def sequences(self) -> list[list[int]]:
        """Return the token sequences that a model reads."""
        return [self.prompt_ids + self.answer]

    def beside_tokens(self) -> str:
        """Return what else a run uses of the row: where the answer begins, and its label."""
        return repr((len(self.prompt_ids), self.desirable))

    def emptied(self) -> TokenizedAnswer:
        return replace(self, weight=0.0)


@dataclass
class PromptRow:
    """A prompt to answer: its tokens, its rendered text, and the row's other columns (for reward functions).

    `source` and `number` say where it was read: the file, and the row counted from 1; 0 if unknown.
    """

    input_ids: list[int]
    text: str
    columns: dict
    source: str = ""
    number: int = 0

    def sequences(self) -> list[list[int]]:
        """Return the token sequences that a model reads."""
        return [self.input_ids]

    def beside_tokens(self) -> str:
        """Return what else a run uses of the row: what rewards are given."""
        return json.dumps([self.text, self.columns], sort_keys=True, default=_spelled)

    def to(self, device: torch.device | str) -> PromptRow:
        """Return itself: there is nothing to move, and Lightning need not walk through it."""
        return self


def _spelled(value: object) -> str:
    """Return text for a value that JSON cannot express; the class name if its repr is only a memory address."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text
