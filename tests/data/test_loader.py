from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

from rlhf_lightning.data import BatchLoader, TokenizedPreference, TokenizedSequence, collate_preferences
from rlhf_lightning.data.batches import IGNORED, SequenceBatch
from rlhf_lightning.data.collation import collate_sequences
from rlhf_lightning.errors import UserError


def make_rows(weights: list[int]) -> list[TokenizedSequence]:
    """Return rows of which row i starts with the token i and has weights[i] labels."""
    return [TokenizedSequence([i] + [99] * weight, [IGNORED] + [99] * weight) for i, weight in enumerate(weights)]


def make_loader(weights: list[int], batch_size: int = 2, **options: Any) -> BatchLoader:
    rows = make_rows(weights)
    return BatchLoader(
        rows, lambda some: collate_sequences(some, 0), batch_size, weights=[row.weight for row in rows], **options
    )


def batch_rows(batch: Any, weights: list[int]) -> list[tuple[int, int]]:
    """Return (row, labels that count) of a batch."""
    assert isinstance(batch, SequenceBatch)
    counts = (batch.labels != IGNORED).sum(1).tolist()
    return [(int(row), count) for row, count in zip(batch.input_ids[:, 0].tolist(), counts, strict=True)]


@pytest.mark.parametrize(("rows", "world_size"), [(7, 2), (5, 2), (9, 3), (1, 4), (8, 2)])
def test_ranks_yield_equally_many_batches_and_every_row_counts_once(rows: int, world_size: int) -> None:
    weights = [i + 1 for i in range(rows)]
    loaders = [make_loader(weights, rank=rank, world_size=world_size) for rank in range(world_size)]
    lengths = {len(list(loader)) for loader in loaders} | {len(loader) for loader in loaders}
    assert len(lengths) == 1
    counted = [0] * rows
    for loader in loaders:
        for batch in loader:
            assert len(batch.input_ids) >= 1  # no process hangs for lack of a row
            for row, count in batch_rows(batch, weights):
                counted[row] += count
    assert counted == weights


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("accumulate", [1, 3, 8])
@pytest.mark.parametrize("batches", [None, 4])
def test_the_gradient_of_a_window_is_the_mean_over_its_weight(
    world_size: int, accumulate: int, batches: int | None
) -> None:
    """Lightning divides a loss by `accumulate`, DDP averages over ranks; a row must get exactly weight / W."""
    weights = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8]
    options = {"accumulate": accumulate, "world_size": world_size, "batches": batches}
    per_rank = [list(make_loader(weights, rank=rank, **options)) for rank in range(world_size)]
    steps = len(per_rank[0]) if batches is None else min(batches, len(per_rank[0]))
    for start in range(0, steps, accumulate):
        window = range(start, min(start + accumulate, steps))
        rows = [pair for step in window for rank in per_rank for pair in batch_rows(rank[step], weights)]
        total = sum(count for _, count in rows)
        seen: dict[int, float] = {}
        for step in window:
            for rank in per_rank:
                for row, count in batch_rows(rank[step], weights):
                    share = count / rank[step].denominator / accumulate / world_size
                    seen[row] = seen.get(row, 0.0) + share
        for row, share in seen.items():
            assert share == pytest.approx(float(Fraction(weights[row], total)), rel=1e-12)
        assert sum(seen.values()) == pytest.approx(1.0, rel=1e-12)


def test_one_batch_of_eight_and_eight_of_one_see_the_same_rows_in_the_same_step() -> None:
    weights = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    whole = [sorted(batch_rows(batch, weights)) for batch in make_loader(weights, batch_size=8)]
    ones = [batch_rows(batch, weights)[0] for batch in make_loader(weights, batch_size=1, accumulate=8)]
    assert [sorted(ones[:8]), sorted(ones[8:])] == whole


def test_two_processes_see_the_global_batches_of_one() -> None:
    weights = [1] * 11
    one = [sorted(batch_rows(batch, weights)) for batch in make_loader(weights, batch_size=4)]
    first, second = (list(make_loader(weights, batch_size=2, rank=rank, world_size=2)) for rank in (0, 1))
    two = [sorted(batch_rows(a, weights) + batch_rows(b, weights)) for a, b in zip(first, second, strict=True)]
    assert two == one


def epoch_order(seed: int, epoch: int) -> list[int]:
    loader = make_loader([1] * 20, seed=seed)
    loader.set_epoch(epoch)
    return loader.order()


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): epoch_order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)}
    assert all(sorted(order) == list(range(20)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    torch.manual_seed(123)
    assert epoch_order(1, 1) == orders[1, 1]


def test_iterating_does_not_touch_the_global_random_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(make_loader([1] * 7))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_shuffling_rows_keep_their_order() -> None:
    loader = make_loader([1] * 5, shuffle=False)
    loader.set_epoch(3)
    assert loader.order() == [0, 1, 2, 3, 4]


def test_a_loader_can_be_iterated_again() -> None:
    loader = make_loader([1] * 7)
    first = [batch_rows(batch, []) for batch in loader]
    assert [batch_rows(batch, []) for batch in loader] == first


@pytest.mark.parametrize("position", range(5))
def test_a_loaded_state_goes_on_with_the_next_batch_then_with_whole_epochs(position: int) -> None:
    weights = [1] * 7
    whole = make_loader(weights)
    whole.set_epoch(2)
    expected = [batch_rows(batch, weights) for batch in whole]

    interrupted = make_loader(weights)
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    for _ in range(position):
        next(iterator)
    state = interrupted.state_dict()

    resumed = make_loader(weights)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    resumed.set_epoch(2)
    assert len(resumed) == 4
    assert [batch_rows(batch, weights) for batch in resumed] == expected[position:]
    assert [batch_rows(batch, weights) for batch in resumed] == expected
    resumed.load_state_dict(state)
    resumed.set_epoch(3)  # the epoch had ended
    assert len(list(resumed)) == 4


def test_a_state_of_other_data_is_refused_within_an_epoch_only() -> None:
    loader = make_loader([1] * 7)
    next(iter(loader))
    with pytest.raises(UserError, match=r"after batch 1 of 4 .*rows was 7, is 9; batch_size was 2, is 3"):
        make_loader([1] * 9, batch_size=3).load_state_dict(loader.state_dict())
    list(loader)
    other = make_loader([1] * 9, batch_size=3)
    other.load_state_dict(loader.state_dict())
    assert list(other) == []  # that epoch is done
    assert len(list(other)) == 3


def test_a_rank_without_a_row_gets_a_preference_that_does_not_count() -> None:
    rows = [TokenizedPreference([5], [[6], [7]], [(0, 1)], [2 * i, 2 * i + 1]) for i in range(5)]
    sums = []
    for rank in (0, 1):
        loader = BatchLoader(
            rows, lambda some: collate_preferences(some, 0), 2, weights=[1.0] * 5, rank=rank, world_size=2
        )
        sums.append([batch.pair_weights.sum().item() for batch in loader])  # type: ignore[attr-defined]
    assert sums == [[2.0, 1.0], [2.0, 0.0]]


def test_batches_that_nobody_learns_from_do_not_divide_by_zero() -> None:
    rows = make_rows([1, 1])
    loader = BatchLoader(rows, lambda some: collate_sequences(some, 0), 1, weights=[0.0, 0.0])
    assert [batch.denominator for batch in loader] == [1.0, 1.0]


def test_no_rows_and_no_batch_size_are_refused() -> None:
    with pytest.raises(UserError, match="no rows"):
        make_loader([])
    with pytest.raises(UserError, match=r"data\.batch_size: found 0"):
        make_loader([1], batch_size=0)
