"""Grouping rows of similar length, so that a batch has little padding."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from rlhf_lightning.rollout.groups import rows_of_groups


def rows_by_tokens(
    lengths: Tensor, budget: int, at_least: Callable[[int], int] = int, group_size: int = 1
) -> list[Tensor]:
    """Return every row once, longest first, in the fewest parts of at most `budget` tokens including padding.

    Args:
        lengths: [B] tokens of every row.
        budget: most tokens of a part: its number of rows times its longest row. A longer row is a part on its own.
        at_least: given the number of parts, returns how many there must be (up to B), so that processes can agree.
        group_size: this many adjacent rows stay together.

    Returns:
        Row numbers, one tensor per part.

    >>> from torch import tensor
    >>> rows_by_tokens(tensor([2, 5, 3, 9]), budget=8)
    [tensor([3]), tensor([1]), tensor([2, 0])]
    >>> rows_by_tokens(tensor([2, 2, 2, 2]), budget=8, at_least=lambda parts: 3)
    [tensor([0]), tensor([1]), tensor([2, 3])]
    >>> rows_by_tokens(tensor([2, 5, 3, 9]), budget=10, group_size=2)
    [tensor([2, 3]), tensor([0, 1])]
    """
    if group_size > 1:
        parts = rows_by_tokens(lengths.view(-1, group_size).amax(dim=1), budget // group_size, at_least)
        return [rows_of_groups(part, group_size) for part in parts]
    order = lengths.argsort(descending=True, stable=True)
    begins = [0]
    for row, length in enumerate(lengths[order].tolist()):
        if row == 0:
            longest = length
        elif (row - begins[-1] + 1) * longest > budget:
            begins.append(row)
            longest = length
    for _ in range(at_least(len(begins)) - len(begins)):
        _halve_the_largest(begins, len(lengths))
    return list(order.tensor_split(begins[1:]))


def _halve_the_largest(begins: list[int], rows: int) -> None:
    """Split the part with the most rows in two."""
    sizes = [end - begin for begin, end in zip(begins, [*begins[1:], rows], strict=True)]
    part = sizes.index(max(sizes))
    begins.insert(part + 1, begins[part] + sizes[part] // 2)
