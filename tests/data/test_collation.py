from __future__ import annotations

import pytest
import torch

from rlhf_lightning.data import SequenceBatch, collate_preferences, collate_sequences, left_pad
from rlhf_lightning.data.batches import TokenizedPreference, TokenizedSequence

PAD, EOS = 0, 2
ROWS = [TokenizedSequence([5, 6, EOS], [-100, 6, EOS]), TokenizedSequence([7, EOS], [-100, EOS])]


def test_sequences_are_padded_on_the_right() -> None:
    batch = collate_sequences(ROWS, pad_id=PAD)
    assert batch.input_ids.tolist() == [[5, 6, EOS], [7, EOS, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.labels.tolist() == [[-100, 6, EOS], [-100, EOS, -100]]
    assert batch.denominator == 3.0
    assert len(batch) == 2
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.labels.dtype == torch.long


def test_masks_and_labels_do_not_depend_on_the_pad_token() -> None:
    apart, same = collate_sequences(ROWS, pad_id=PAD), collate_sequences(ROWS, pad_id=EOS)
    assert torch.equal(apart.attention_mask, same.attention_mask)
    assert torch.equal(apart.labels, same.labels)
    assert apart.denominator == same.denominator
    ranked = [TokenizedPreference([5], [[6, EOS], [EOS]], [(0, 1)], [0, 1])]
    for name in ("attention_mask", "completion_mask", "pair_weights"):
        values = [getattr(collate_preferences(ranked, pad_id=pad), name) for pad in (PAD, EOS)]
        assert torch.equal(*values), name


def test_prompts_are_padded_on_the_left_by_length() -> None:
    for pad in (PAD, EOS, 7):
        ids, mask = left_pad([[7], [5, EOS, 6]], pad)
        assert ids.tolist() == [[pad, pad, 7], [5, EOS, 6]]
        assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_all_answers_of_a_prompt_are_in_one_batch_and_the_prompt_counts_once() -> None:
    ranked = TokenizedPreference([5, 6], [[7, EOS], [8, 9, EOS], [EOS]], [(0, 1), (0, 2), (1, 2)], [30, 31, 32])
    pair = TokenizedPreference([5], [[8, EOS], [9, EOS]], [(0, 1)], [60, 61])
    batch = collate_preferences([pair, ranked], pad_id=PAD)
    assert batch.input_ids[2].tolist() == [5, 6, 7, EOS, PAD]
    assert batch.attention_mask[2].tolist() == [1, 1, 1, 1, 0]
    assert batch.completion_mask[2].tolist() == [0, 0, 1, 1, 0]
    assert batch.pairs.tolist() == [[0, 1], [2, 3], [2, 4], [3, 4]]
    assert batch.pair_weights.tolist() == pytest.approx([1.0, 1 / 3, 1 / 3, 1 / 3])
    assert batch.row_ids.tolist() == [60, 61, 30, 31, 32]
    assert batch.margin is None
    assert batch.denominator == 2.0
    assert len(batch) == 5


def test_a_margin_is_given_for_every_pair() -> None:
    stated = TokenizedPreference([5], [[8], [9]], [(0, 1)], [0, 1], margin=0.5)
    unstated = TokenizedPreference([5], [[8], [9]], [(0, 1)], [2, 3])
    margin = collate_preferences([unstated, stated], pad_id=PAD).margin
    assert margin is not None
    assert margin.tolist() == [0.0, 0.5]


def test_an_emptied_row_has_tokens_and_no_share_in_the_loss() -> None:
    batch = collate_sequences([ROWS[0].emptied()], pad_id=PAD)
    assert batch.attention_mask.tolist() == [[1, 1, 1]]
    assert batch.labels.tolist() == [[-100] * 3]
    pair = TokenizedPreference([5], [[8], [9]], [(0, 1)], [0, 1])
    assert collate_preferences([pair.emptied()], pad_id=PAD).pair_weights.tolist() == [0.0]


def test_moving_a_batch_leaves_the_original() -> None:
    batch = collate_sequences(ROWS, pad_id=PAD)
    moved = batch.to("meta")
    assert isinstance(moved, SequenceBatch)
    assert moved.labels.device.type == "meta"
    assert batch.labels.device.type == "cpu"
    assert moved.denominator == batch.denominator
