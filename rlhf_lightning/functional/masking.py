"""Mean, variance and whitening over valid tokens only."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import blank, check_shapes

Dims = int | tuple[int, ...] | None

WHITENING_EPSILON = 1e-8  # added to the variance, as in openai/lm-human-preferences, lm_human_preferences/utils/core.py


def masked_mean(x: Tensor, mask: Tensor, dim: Dims = None) -> Tensor:
    r"""Return the mean over the valid entries: $\sum_t m_t x_t / \sum_t m_t$.

    Args:
        x: any shape.
        mask: the shape of `x`; nonzero where valid.
        dim: the dimension or dimensions to reduce; all of them if None.

    Returns:
        The mean in at least float32; 0 if no entry is valid.

    Raises:
        ValueError: `mask` has another shape than `x`.

    >>> x = torch.tensor([[1.0, 3.0, float("nan")], [5.0, 7.0, 9.0]])
    >>> mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    >>> masked_mean(x, mask)
    tensor(5.)
    >>> masked_mean(x, mask, dim=1)
    tensor([2., 7.])
    """
    check_shapes(x=x, mask=mask)
    return _mean(x, mask != 0, dim)


def masked_var(x: Tensor, mask: Tensor, dim: Dims = None) -> Tensor:
    r"""Return the population variance over the valid entries: $\sum_t m_t (x_t - \bar x)^2 / \sum_t m_t$.

    Args:
        x: any shape.
        mask: the shape of `x`; nonzero where valid.
        dim: the dimension or dimensions to reduce; all of them if None.

    Returns:
        The variance in at least float32, divided by the count (not the count minus 1); 0 if fewer than two entries are
        valid.

    Raises:
        ValueError: `mask` has another shape than `x`.

    >>> masked_var(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1.0, 1.0, 0.0]))
    tensor(1.)
    """
    check_shapes(x=x, mask=mask)
    valid = mask != 0
    x = blank(x, valid)
    return _mean((x - _mean(x, valid, dim, keepdim=True)).square(), valid, dim)


def masked_whiten(x: Tensor, mask: Tensor, center: bool = True) -> Tensor:
    r"""Return valid entries scaled to unit variance: $(x_t - \bar x) / \sqrt{\mathrm{var}(x) + 10^{-8}}$.

    If not `center`, $\bar x$ is added back.

    Source: openai/lm-human-preferences, `whiten(values, shift_mean)`; here over the valid entries of all rows.

    Args:
        x: any shape.
        mask: the shape of `x`; nonzero where valid.
        center: subtract the mean; False keeps it.

    Returns:
        The shape of `x`, in at least float32, 0 outside the mask. Over valid entries the population variance is 1,
        unless
        they are all equal: then each becomes 0 (the mean if not `center`).

    Raises:
        ValueError: `mask` has another shape than `x`.

    >>> masked_whiten(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1.0, 1.0, 0.0]))
    tensor([-1.,  1.,  0.])
    >>> masked_whiten(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([1.0, 1.0, 0.0]), center=False)
    tensor([1., 3., 0.])
    """
    check_shapes(x=x, mask=mask)
    valid = mask != 0
    x = blank(x, valid)
    mean = _mean(x, valid)
    centered = x - mean
    centered = centered - _mean(centered, valid)  # the first mean is rounded: a large one would leave an offset
    whitened = centered * torch.rsqrt(_mean(centered.square(), valid) + WHITENING_EPSILON)
    return blank(whitened if center else whitened + mean, valid)


def _mean(x: Tensor, valid: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    total = blank(x, valid).sum(dim=dim, keepdim=keepdim)
    return total / valid.sum(dim=dim, keepdim=keepdim).clamp(min=1)
