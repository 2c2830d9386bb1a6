"""The loss of a process reward model, and one score from those of several steps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, blank, check_integers, check_shapes, divide

IGNORED = -100


def process_reward_loss(logits: Tensor, labels: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    r"""Return the cross-entropy of steps: $-\frac1D \sum_k \log p_{y_k}$ with $p = \text{softmax}(z_k)$ of two classes.

    Source: Uesato et al. 2022 (arXiv:2211.14275) and Lightman et al. 2023 (arXiv:2305.20050), who classify each step.

    Args:
        logits: [K, 2], z: of a wrong step, of a right one.
        labels: [K], integers: 1 for a right step, 0 for a wrong one, -100 for one that does not count.
        denominator: D; None: the number of steps that count.

    Returns:
        A scalar in nats, at least float32; 0 if no step counts.

    Raises:
        ValueError: `logits` is not [K, 2], or `labels` not [K] integers.

    >>> import torch
    >>> process_reward_loss(torch.tensor([[0.0, 0.0], [0.0, 9.0], [5.0, 1.0]]), torch.tensor([1, 1, -100]))
    tensor(0.3466)
    """
    if logits.ndim != 2 or logits.shape[1] != 2:
        raise ValueError(f"`logits` has shape {list(logits.shape)}; expected [K, 2]")
    check_integers(labels=labels)
    if labels.shape != logits.shape[:1]:
        raise ValueError(f"`labels` has shape {list(labels.shape)}; expected {list(logits.shape[:1])}")
    counted = labels != IGNORED
    known = blank(at_least_float32(logits), counted.unsqueeze(1).expand_as(logits))
    losses = F.cross_entropy(known, labels.where(counted, labels.new_zeros(())), reduction="none")
    return divide(blank(losses, counted).sum(), denominator, default=counted.sum().to(losses.dtype))


def aggregate_steps(scores: Tensor, mask: Tensor, aggregation: str = "min") -> Tensor:
    r"""Return one score per response from those of its steps: $\min_k s_k$, $\prod_k s_k$, or $s_K$ of the last.

    A sum is not among them: it pays for further steps. Source: Lightman et al. 2023 (arXiv:2305.20050), appendix F,
    compare the product and the minimum.

    Args:
        scores: [B, S], of each step, such as the probability that it is right.
        mask: [B, S], nonzero on steps, which come first.
        aggregation: `min`, `product` or `last`.

    Returns:
        [B], at least float32; 0 for a response without steps.

    Raises:
        ValueError: the tensors are not both [B, S], or an unknown aggregation.

    >>> import torch
    >>> scores, mask = torch.tensor([[0.9, 0.5, 0.8], [0.4, 7.0, 7.0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    >>> aggregate_steps(scores, mask), aggregate_steps(scores, mask, "product"), aggregate_steps(scores, mask, "last")
    (tensor([0.5000, 0.4000]), tensor([0.3600, 0.4000]), tensor([0.8000, 0.4000]))
    """
    check_shapes(2, scores=scores, mask=mask)
    valid = mask != 0
    scores = at_least_float32(scores)
    if aggregation == "min":
        found = scores.masked_fill(~valid, float("inf")).amin(dim=1)
    elif aggregation == "product":
        found = scores.masked_fill(~valid, 1.0).prod(dim=1)
    elif aggregation == "last":
        last = valid & (valid.cumsum(1) == valid.sum(1, keepdim=True))
        found = blank(scores, last).sum(dim=1)
    else:
        raise ValueError(f"`aggregation` is {aggregation!r}; expected min, product or last")
    return found.where(valid.any(dim=1), found.new_zeros(()))
