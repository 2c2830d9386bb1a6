"""Log-probabilities of chosen tokens and entropies of next-token distributions, at once or in chunks of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rlhf_lightning.functional._arguments import at_least_float32, check_integers, check_positive
from rlhf_lightning.functional.allowed import unpack_allowed

IGNORE_INDEX = -100  # label of a position that is not scored, as in PyTorch's cross entropy


def token_logprobs(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the log-probability of each label: $z_y / \tau - \log \sum_v \exp(z_v / \tau)$.

    Logits and labels are aligned: the caller has shifted them so that `logits[:, t]` predicts `labels[:, t]`.

    Args:
        logits: [B, T, V] (any leading shape). -inf excludes a token.
        labels: [B, T], token ids; -100 where nothing is scored; the logits there are not read.
        temperature: the $\tau$ of the distribution the tokens are sampled from.

    Returns:
        [B, T] in nats, at least float32; 0 where the label is -100.

    Raises:
        ValueError: `labels` does not have the leading shape of `logits` or holds no integers; `temperature` <= 0.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0986123]]])  # log 3
    >>> token_logprobs(logits, torch.tensor([[0, 1]])).exp()
    tensor([[0.5000, 0.7500]])
    >>> token_logprobs(logits, torch.tensor([[0, -100]])).exp()
    tensor([[0.5000, 1.0000]])
    """
    _check(logits, labels, "logits")
    check_positive(temperature=temperature)
    ignored = labels == IGNORE_INDEX
    return _chosen(logits.masked_fill(ignored.unsqueeze(-1), 0.0), labels, ignored, temperature)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r"""Return the entropy of the next-token distribution: $-\sum_v p_v \log p_v$ with $p = \mathrm{softmax}(z / \tau)$.

    Args:
        logits: [B, T, V] (any leading shape). -inf excludes a token.
        temperature: the $\tau$ of the distribution the tokens are sampled from.

    Returns:
        [B, T] in nats, at least float32, from 0 to log V.

    Raises:
        ValueError: `logits` has no dimension; `temperature` <= 0.

    >>> entropy(torch.zeros(1, 1, 4))  # log 4
    tensor([[1.3863]])
    """
    if logits.ndim < 1:
        raise ValueError("`logits` has shape []; expected [..., V]")
    check_positive(temperature=temperature)
    logprobs = _tempered(logits, temperature).log_softmax(-1)
    probabilities = logprobs.exp()
    return -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(-1)  # 0 log 0 is 0, not NaN


def chunked_token_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    labels: Tensor,
    temperature: float = 1.0,
    chunk_size: int = 1024,
    with_entropy: bool = False,
    frozen_head: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return `token_logprobs(head(hidden), labels)` and the entropy without ever holding [B, T, V] logits.

    The head runs on `chunk_size` tokens at a time. When gradients are recorded, a chunk's logits are dropped after the
    forward pass and recomputed in the backward pass, so memory for logits is chunk_size * V in both. With a frozen head
    they are computed once: a token's log-probability depends only on its own hidden state, so its gradient [H] is
    computed in the forward pass, and the backward pass only scales it.

    Args:
        hidden: [B, T, H] (any leading shape), the last hidden states. Not read where the label is -100.
        head: maps [n, H] to logits [n, V]: the model's output layer.
        labels: [B, T], token ids, aligned with `hidden`; -100 where nothing is scored.
        temperature: as in `token_logprobs`.
        chunk_size: tokens per chunk.
        with_entropy: also return the entropy.
        frozen_head: the head has no trainable parameters.
        allowed: [B, T, ceil(V / 8)], the tokens over which the distributions are renormalised, as bits (see
            `pack_allowed`); None: all.

    Returns:
        Log-probabilities [B, T], and entropies [B, T] or None; nats, at least float32, both 0 where the label is -100.

    Raises:
        ValueError: as `token_logprobs`, or `chunk_size` <= 0.

    >>> head = torch.nn.Linear(3, 5)
    >>> hidden, labels = torch.randn(2, 4, 3), torch.randint(5, (2, 4))
    >>> logprobs, _ = chunked_token_logprobs(hidden, head, labels, chunk_size=3)
    >>> torch.allclose(logprobs, token_logprobs(head(hidden), labels), atol=1e-6)
    True
    """
    _check(hidden, labels, "hidden")
    check_positive(temperature=temperature, chunk_size=chunk_size)

    def of_chunk(hidden: Tensor, labels: Tensor, bits: Tensor | None = None) -> tuple[Tensor, ...]:
        ignored = labels == IGNORE_INDEX
        # Zeroed before the head: a NaN at padding would reach the head's gradient as 0 * NaN.
        logits = head(hidden.masked_fill(ignored.unsqueeze(-1), 0.0))
        if bits is not None:
            logits = logits.masked_fill(~unpack_allowed(bits, logits.shape[-1]), -torch.inf)
        logprobs = _chosen(logits, labels, ignored, temperature)
        return (logprobs, entropy(logits, temperature).masked_fill(ignored, 0.0)) if with_entropy else (logprobs,)

    parts: list[tuple[Any, ...]] = []
    flat = [hidden.flatten(0, -2), labels.flatten(), *([] if allowed is None else [allowed.flatten(0, -2)])]
    chunks = [*zip(*(each.split(chunk_size) for each in flat), strict=True)]
    recompute = torch.is_grad_enabled() and len(chunks) > 1  # with one chunk, its logits are in memory either way
    at_once = torch.is_grad_enabled() and hidden.requires_grad and frozen_head and not with_entropy
    for chunk in chunks:
        if at_once:
            parts.append((_WithGradient.apply(of_chunk, *chunk),))
        elif recompute:
            parts.append(checkpoint(of_chunk, *chunk, use_reentrant=False))
        else:
            parts.append(of_chunk(*chunk))
    logprobs, *entropies = (torch.cat(part).view(labels.shape) for part in zip(*parts, strict=True))
    return logprobs, entropies[0] if with_entropy else None


class _WithGradient(torch.autograd.Function):
    """Numbers [n] that each depend on one hidden state, of [n, H], and on nothing else that is trained."""

    @staticmethod
    def forward(ctx: Any, of_chunk: Callable[..., tuple[Tensor, ...]], hidden: Tensor, *others: Tensor) -> Tensor:
        with torch.enable_grad():
            states = hidden.detach().requires_grad_()
            numbers = of_chunk(states, *others)[0]
            (gradient,) = torch.autograd.grad(numbers.sum(), states)
        ctx.save_for_backward(gradient)
        ctx.others = len(others)
        return numbers.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None, weights.unsqueeze(-1).to(gradient.dtype) * gradient, *[None] * ctx.others


def _check(scores: Tensor, labels: Tensor, name: str) -> None:
    if scores.ndim < 2 or scores.shape[:-1] != labels.shape:
        raise ValueError(
            f"`labels` has shape {list(labels.shape)}; expected {list(scores.shape[:-1])}, "
            f"the leading shape of `{name}` {list(scores.shape)}"
        )
    check_integers(labels=labels)


def _chosen(logits: Tensor, labels: Tensor, ignored: Tensor, temperature: float) -> Tensor:
    """Return `token_logprobs` of finite logits."""
    chosen: Tensor = _Chosen.apply(_tempered(logits, temperature), labels.masked_fill(ignored, 0))
    return chosen.masked_fill(ignored, 0.0)


class _Chosen(torch.autograd.Function):
    """log p_y of softmax(z), [..., V] and [...], with the gradient 1[v = y] - p_v for every logit.

    Autograd keeps p. The log-sum-exp in log p_y = z_y - log sum_v exp(z_v) comes from the largest p, which is at least
    1 / V: max z - log max p.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        probabilities, labels = logits.softmax(-1), labels.unsqueeze(-1)
        log_sum = logits.amax(-1, keepdim=True) - probabilities.amax(-1, keepdim=True).log()
        ctx.save_for_backward(probabilities, labels)
        return (logits.gather(-1, labels) - log_sum).squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        probabilities, labels = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1)
        return (probabilities * -gradient).scatter_add_(-1, labels, gradient), None


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    logits = at_least_float32(logits)
    return logits if temperature == 1.0 else logits / temperature  # the division would copy [B, T, V]
