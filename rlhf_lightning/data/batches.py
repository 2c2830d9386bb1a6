"""What a training step receives, and the tokenised rows it is collated from.

Batches are plain classes, on purpose neither dicts nor dataclasses: under `bf16-true` Lightning walks into both and
casts every float tensor it finds. It leaves an object of another kind alone and moves it with its `.to(device)`.

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

IGNORED = -100  # the label that torch's cross-entropy leaves out


class Row(Protocol):
    """What the loader needs of a tokenised row."""

    def emptied(self) -> Self:
        """The same row without any share in the loss."""
        ...


class Batch:
    """Tensors that move to a device together. `denominator` is what the batch's summed loss is divided by."""

    denominator: float

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """A copy with every tensor on `device`; dtypes stay.

        From ordinary memory CUDA takes a copy at once; a call that blocks would wait for all that the GPU was given.
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
        attention_mask: `[B, L]` long, 1 on tokens. From lengths: pad may be the same token as EOS.
        labels: `[B, L]` long, not shifted (the label of position t is `input_ids[t]`), -100 where there is no loss.
            Position 0 is never predicted and is always -100.
        denominator: label tokens that the summed loss is divided by; see `BatchLoader`.
    """

    def __init__(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, denominator: float) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.labels = labels
        self.denominator = denominator

    def __len__(self) -> int:
        return self.input_ids.shape[0]


class PreferenceBatch(Batch):
    """Answers to prompts and which of them were preferred, for reward models and DPO.

    Attributes:
        input_ids: `[N, L]` long, right-padded: prompt, answer, EOS. The answers of a prompt are neighbours.
        attention_mask: `[N, L]` long, 1 on tokens.
        completion_mask: `[N, L]` long, 1 on the answer's tokens, EOS included.
        pairs: `[M, 2]` long: row of the better answer, row of the worse.
        margin: `[M]` float, how much better, or None when no row of the batch states it.
        pair_weights: `[M]` float, 1 / (pairs of that prompt), so that a prompt counts once however many answers it has
            (Ouyang et al. 2022, eq. 1: 1 / C(K, 2)); 0 for a row that only fills a rank's place.
        row_ids: `[N]` long, an id of the answer, the same in every epoch and process, of train and val together.
        denominator: prompts that the summed, weighted loss is divided by; see `BatchLoader`.
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
    ) -> None:
        self.input_ids = input_ids
        self.attention_mask = attention_mask
        self.completion_mask = completion_mask
        self.pairs = pairs
        self.margin = margin
        self.pair_weights = pair_weights
        self.row_ids = row_ids
        self.denominator = denominator

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def prompt_lengths(self) -> Tensor:
        """`[N]` long, tokens before the answer: the answers of a prompt begin with the same ones."""
        return self.completion_mask.argmax(dim=1)


class MismatchedBatch(Batch):
    """Prompts, each with the answer to another one.

    Attributes:
        input_ids: `[N, L]` long, right-padded: prompt, the other's answer.
        completion_mask: `[N, L]` long, 1 on the answer's tokens.
        weights: `[N]` float, 1; 0 for a row that only fills a rank's place, or that no other prompt is beside.
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
        completion_mask: `[N, L]` long, 1 on the answer's tokens, EOS included.
        desirable: `[N]` booleans.
        weights: `[N]` float, 1; 0 for a row that only fills a rank's place.
        denominator: answers that the summed, weighted loss is divided by; see `BatchLoader`.
        mismatched: of the first batch of an optimiser step, one for each batch of that step; see `UnpairedLoader`.
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
        """Its share of the loss: the label tokens that count."""
        return float(len(self.labels) - self.labels.count(IGNORED))

    def sequences(self) -> list[list[int]]:
        """What a model reads of the row."""
        return [self.input_ids]

    def beside_tokens(self) -> str:
        """What else of the row a run uses: which tokens are learned."""
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

    def sequences(self) -> list[list[int]]:
        """What a model reads of the row."""
        return [self.prompt_ids + answer for answer in self.answers]

    def beside_tokens(self) -> str:
        """What else of the row a run uses: where answers begin, which were preferred, and how much."""
        return repr((len(self.prompt_ids), self.pairs, self.margin))

    def emptied(self) -> TokenizedPreference:
        return replace(self, weight=0.0)


@dataclass(frozen=True)
class TokenizedAnswer:
    """A prompt, one answer, and whether that is desirable."""

    prompt_ids: list[int]
    answer: list[int]
    desirable: bool
    weight: float = 1.0

    def sequences(self) -> list[list[int]]:
        """What a model reads of the row."""
        return [self.prompt_ids + self.answer]

    def beside_tokens(self) -> str:
        """What else of the row a run uses: where the answer begins, and its label."""
        return repr((len(self.prompt_ids), self.desirable))

    def emptied(self) -> TokenizedAnswer:
        return replace(self, weight=0.0)


@dataclass
class PromptRow:
    """A prompt to answer: its tokens, its rendered text, and the row's other columns (for reward functions).

    `source` and `number` say where it was read: the file, and its row from 1; 0 where that is not known.
    """

    input_ids: list[int]
    text: str
    columns: dict
    source: str = ""
    number: int = 0

    def sequences(self) -> list[list[int]]:
        """What a model reads of the row."""
        return [self.input_ids]

    def beside_tokens(self) -> str:
        """What else of the row a run uses: what rewards are given."""
        return json.dumps([self.text, self.columns], sort_keys=True, default=_spelled)

    def to(self, device: torch.device | str) -> PromptRow:
        """Itself: there is nothing to move, and Lightning need not walk through it."""
        return self


def _spelled(value: object) -> str:
    """A value that JSON has no word for; one that shows nothing but its place in memory by its class."""
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text
