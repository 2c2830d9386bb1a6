"""Collating rows of different lengths into tensors. Masks come from lengths, never from the pad token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.data.batches import (
    IGNORED,
    MismatchedBatch,
    PreferenceBatch,
    SequenceBatch,
    TokenizedAnswer,
    TokenizedPreference,
    TokenizedSequence,
    UnpairedBatch,
)
from rlhf_lightning.data.rewarded_batches import RewardedBatch, TokenizedRewarded


def right_pad(sequences: Sequence[Sequence[float]], value: int, dtype: torch.dtype = torch.long) -> Tensor:
    """Return `[B, L]`, each row filled up with `value` on the right."""
    longest = max(len(sequence) for sequence in sequences)
    return torch.tensor([[*sequence, *[value] * (longest - len(sequence))] for sequence in sequences], dtype=dtype)


def ones(sequences: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return a list of ones for every token."""
    return [[1] * len(sequence) for sequence in sequences]


def left_pad(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return token ids and mask, both `[B, P]` long, padded on the left, as generation needs them.

    >>> left_pad([[5, 6, 7], [8]], pad_id=0)
    (tensor([[5, 6, 7],
            [0, 0, 8]]), tensor([[1, 1, 1],
            [0, 0, 1]]))
    """
    longest = max(len(sequence) for sequence in sequences)
    ids = [[*[pad_id] * (longest - len(s)), *s] for s in sequences]
    mask = [[*[0] * (longest - len(s)), *[1] * len(s)] for s in sequences]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(mask, dtype=torch.long)


def collate_sequences(rows: Sequence[TokenizedSequence], pad_id: int) -> SequenceBatch:
    """Return a right-padded batch of B rows. `denominator` is the batch's own label tokens, until a loader sets it."""
    ids = [row.input_ids for row in rows]
    return SequenceBatch(
        input_ids=right_pad(ids, pad_id),
        attention_mask=right_pad(ones(ids), 0),
        labels=right_pad([row.labels for row in rows], IGNORED),
        denominator=max(sum(row.weight for row in rows), 1.0),
    )


def collate_preferences(rows: Sequence[TokenizedPreference], pad_id: int) -> PreferenceBatch:
    """Return a right-padded batch of all answers of the rows, and the pairs over them.

    `denominator` is the batch's own number of prompts that count, until a loader sets it.
    """
    ids: list[list[int]] = []
    completion_masks: list[list[int]] = []
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    for row in rows:
        first = len(ids)
        ids += [row.prompt_ids + answer for answer in row.answers]
        completion_masks += [[0] * len(row.prompt_ids) + [1] * len(answer) for answer in row.answers]
        pairs += [(first + better, first + worse) for better, worse in row.pairs]
        weights += [row.weight / len(row.pairs)] * len(row.pairs)
    margin = None
    if any(row.margin is not None for row in rows):
        margin = torch.tensor([row.margin or 0.0 for row in rows for _ in row.pairs], dtype=torch.float32)
    return PreferenceBatch(
        input_ids=right_pad(ids, pad_id),
        attention_mask=right_pad(ones(ids), 0),
        completion_mask=right_pad(completion_masks, 0),
        pairs=torch.tensor(pairs, dtype=torch.long),
        margin=margin,
        pair_weights=torch.tensor(weights, dtype=torch.float32),
        row_ids=torch.tensor([i for row in rows for i in row.row_ids], dtype=torch.long),
        safe=None if rows[0].safe is None else torch.tensor([safe for row in rows for safe in row.safe or ()]),
        denominator=max(sum(row.weight for row in rows), 1.0),
    )


def collate_answers(rows: Sequence[TokenizedAnswer], pad_id: int) -> UnpairedBatch:
    """Return a right-padded batch of single answers; `denominator` counts its own, until a loader sets it."""
    ids = [row.prompt_ids + row.answer for row in rows]
    return UnpairedBatch(
        input_ids=right_pad(ids, pad_id),
        attention_mask=right_pad(ones(ids), 0),
        completion_mask=right_pad(_on_answers(rows), 0),
        desirable=torch.tensor([row.desirable for row in rows], dtype=torch.bool),
        weights=torch.tensor([row.weight for row in rows], dtype=torch.float32),
        denominator=max(sum(row.weight for row in rows), 1.0),
    )


def collate_mismatched(rows: Sequence[TokenizedAnswer], pad_id: int) -> MismatchedBatch:
    """Return a right-padded batch of prompts with the answers to other prompts."""
    return MismatchedBatch(
        input_ids=right_pad([row.prompt_ids + row.answer for row in rows], pad_id),
        completion_mask=right_pad(_on_answers(rows), 0),
        weights=torch.tensor([row.weight for row in rows], dtype=torch.float32),
    )


def collate_rewarded(rows: Sequence[TokenizedRewarded], pad_id: int) -> RewardedBatch:
    """Return a right-padded batch of rewarded answers; `denominator` counts its own tokens, until a loader sets it."""
    ids = [row.prompt_ids + row.answer for row in rows]
    rewards = [[0.0] * len(row.prompt_ids) + row.rewards for row in rows]
    return RewardedBatch(
        input_ids=right_pad(ids, pad_id),
        attention_mask=right_pad(ones(ids), 0),
        completion_mask=right_pad(_on_answers(rows), 0),
        rewards=right_pad(rewards, 0, torch.float32),
        weights=torch.tensor([row.share for row in rows], dtype=torch.float32),
        denominator=max(sum(row.weight for row in rows), 1.0),
    )


def _on_answers(rows: Sequence[TokenizedAnswer | TokenizedRewarded]) -> list[list[int]]:
    return [[0] * len(row.prompt_ids) + [1] * len(row.answer) for row in rows]
