"""Rows of similar length are grouped, within a token budget."""

from __future__ import annotations

import pytest
import torch

from rlhf_lightning.rollout import rows_by_tokens


def padded(lengths: torch.Tensor, parts: list[torch.Tensor]) -> int:
    return sum(len(part) * int(lengths[part].max()) for part in parts)


@pytest.mark.parametrize("budget", [1, 7, 64, 100, 10**9])
def test_every_row_is_in_one_part_and_no_part_of_several_rows_passes_the_budget(budget: int) -> None:
    lengths = torch.randint(1, 60, (40,), generator=torch.Generator().manual_seed(0))
    parts = rows_by_tokens(lengths, budget)
    assert torch.cat(parts).sort().values.tolist() == list(range(40))
    assert all(len(part) == 1 or len(part) * int(lengths[part].max()) <= budget for part in parts)
    assert len(parts) == (1 if budget == 10**9 else 40 if budget == 1 else len(parts))


def test_little_of_the_parts_is_padding() -> None:
    lengths = torch.randint(1, 200, (64,), generator=torch.Generator().manual_seed(0))
    parts = rows_by_tokens(lengths, 800)
    assert padded(lengths, [torch.arange(64)]) > 1.7 * lengths.sum()
    assert padded(lengths, parts) < 1.15 * lengths.sum()


def test_more_parts_than_needed_still_keep_the_budget() -> None:
    lengths = torch.tensor([3, 9, 4, 4, 8, 1, 1, 2])
    for count in range(4, 9):
        parts = rows_by_tokens(lengths, 18, at_least=lambda found, count=count: max(found, count))
        assert len(parts) == count
        assert torch.cat(parts).sort().values.tolist() == list(range(8))
        assert all(len(part) * int(lengths[part].max()) <= 18 for part in parts)
