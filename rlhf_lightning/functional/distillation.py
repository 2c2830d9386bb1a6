"""Divergences between a student's and a teacher's next-token distributions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.functional._arguments import at_least_float32, check_positive, check_probability, check_shapes
from rlhf_lightning.functional.masking import masked_mean

Head = Callable[[Tensor], Tensor]


def generalized_jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> Tensor:
    r"""Return the mean over valid tokens of the generalised Jensen-Shannon divergence of teacher T and student S.

    $$D_\beta(T \Vert S) = \beta\, KL(T \Vert M) + (1 - \beta)\, KL(S \Vert M), \qquad M = \beta T + (1 - \beta) S$$

    At $\beta = 0$ it is the forward KL, $KL(T \Vert S)$, and at $\beta = 1$ the reverse KL, $KL(S \Vert T)$: the limits
    of $D_\beta / \beta$ and of $D_\beta / (1 - \beta)$, as $D_\beta$ itself vanishes at both ends. Source: Agarwal et
    al. 2024 (arXiv:2306.13649), section 2; TRL's `GKDTrainer` has the same ends.

    Only `chunk_size` tokens are in float32 at a time; their probabilities are computed again in the backward pass.

    Args:
        student_logits: [B, T, V], aligned with the tokens they predict.
        teacher_logits: [B, T, V], the same; no gradient flows into them.
        mask: [B, T], nonzero on valid tokens.
        beta: $\beta$, from 0 to 1.
        temperature: divides the logits of both.
        chunk_size: tokens per chunk.

    Returns:
        A scalar in nats per token, at least float32; 0 if no token is valid.

    Raises:
        ValueError: the shapes differ, or a number is out of range.

    >>> teacher, student = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[1.0986123, 0.0]]])  # 1/2, 1/2 and 3/4, 1/4
    >>> mask = torch.ones(1, 1)
    >>> [round(float(generalized_jsd(student, teacher, mask, beta)), 4) for beta in (0.0, 0.5, 1.0)]
    [0.1438, 0.0338, 0.1308]
    """
    check_shapes(3, student_logits=student_logits, teacher_logits=teacher_logits)
    check_shapes(2, mask=mask, student_logits=student_logits[..., 0])
    _check_numbers(beta, temperature, chunk_size)

    def of_chunk(student: Tensor, teacher: Tensor, outside: Tensor) -> Tensor:
        student, teacher = (x.masked_fill(outside.unsqueeze(-1), 0.0) for x in (student, teacher))
        return _divergence(_tempered(teacher, temperature), _tempered(student, temperature), beta)

    parts = (student_logits.flatten(0, 1), teacher_logits.detach().flatten(0, 1), (mask == 0).flatten())
    return masked_mean(_in_chunks(of_chunk, chunk_size, *parts).view(mask.shape), mask)


def chunked_divergences(
    student_hidden: Tensor,
    student_head: Head,
    teacher_hidden: Tensor,
    teacher_head: Head,
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk_size: int = 1024,
) -> Tensor:
    """Return `generalized_jsd` of each token, without ever holding the logits of all of them.

    Args:
        student_hidden, teacher_hidden: [K, H] each (H may differ), the states that K tokens are predicted from.
        student_head, teacher_head: from [n, H] to logits [n, V].
        beta, temperature: as in `generalized_jsd`.
        chunk_size: tokens whose logits are in memory at a time.

    Returns:
        [K] nats, at least float32; the gradient is the student's alone.

    Raises:
        ValueError: the numbers of tokens differ, or a number is out of range.

    >>> head = torch.nn.Linear(3, 5)
    >>> chunked_divergences(torch.ones(4, 3), head, torch.ones(4, 3), head, chunk_size=3).abs().max() < 1e-6
    tensor(True)
    """
    check_shapes(student_hidden=student_hidden[:, 0], teacher_hidden=teacher_hidden[:, 0])
    _check_numbers(beta, temperature, chunk_size)

    def of_chunk(student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            taught = _tempered(teacher_head(teacher), temperature)
        return _divergence(taught, _tempered(student_head(student), temperature), beta)

    return _in_chunks(of_chunk, chunk_size, student_hidden, teacher_hidden.detach())


def _check_numbers(beta: float, temperature: float, chunk_size: int) -> None:
    check_probability(beta=beta)
    check_positive(temperature=temperature, chunk_size=chunk_size)


def _in_chunks(of_chunk: Callable[..., Tensor], size: int, *parts: Tensor) -> Tensor:
    """Return `of_chunk` of tensors [K, ...], in chunks that are computed again in the backward pass."""
    chunks = zip(*(part.split(size) for part in parts), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(of_chunk, *chunk, use_reentrant=False) for chunk in chunks])
    return torch.cat([of_chunk(*chunk) for chunk in chunks])


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return at_least_float32(logits).div(temperature).log_softmax(dim=-1)


def _divergence(teacher: Tensor, student: Tensor, beta: float) -> Tensor:
    """Return the divergence [n] of log-probabilities [n, V]."""
    if beta == 0:
        return _kl(teacher, student)
    if beta == 1:
        return _kl(student, teacher)
    excluded = teacher.isneginf() & student.isneginf()  # by both: logaddexp has no gradient there
    weighted = (teacher + math.log(beta), student + math.log1p(-beta))
    mixture = torch.logaddexp(*(x.masked_fill(excluded, 0.0) for x in weighted)).masked_fill(excluded, -torch.inf)
    return beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    gap = (p - q).masked_fill(p.isneginf(), 0.0)  # 0 log 0 is 0
    return (p.exp() * gap).sum(dim=-1)
