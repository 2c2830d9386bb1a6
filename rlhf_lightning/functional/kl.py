"""Estimates of the KL divergence from log-probabilities of sampled tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, check_shapes

KINDS = ("k1", "k2", "k3", "abs")


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, kind: str = "k1") -> Tensor:
    r"""Return the per-token estimate of $\mathrm{KL}(\pi \| \pi_{ref})$ from tokens sampled by $\pi$.

    With $d = \log \pi(a) - \log \pi_{ref}(a)$:

    - `k1`: $d$. Unbiased, of either sign. As a loss its expected gradient is 0: it belongs in the rewards.
    - `k2`: $d^2 / 2$. Biased, but as a loss on $\pi$'s own samples its expected gradient is that of the token's KL.
    - `k3`: $e^{-d} - 1 + d$. Unbiased and never negative. As a loss its expected gradient is that of
      $\mathrm{KL}(\pi_{ref} \| \pi)$.
    - `abs`: $|d|$. A penalty, not an estimate.

    Source: J. Schulman, "Approximating KL divergence", 2020, joschu.net/blog/kl-approx.html (his $r$ is $e^{-d}$).

    Args:
        logprobs: [B, T] (any shape), log-probabilities under $\pi$.
        ref_logprobs: the same shape, under $\pi_{ref}$.
        kind: `k1`, `k2`, `k3` or `abs`.

    Returns:
        The shape of `logprobs`, nats per token, at least float32. Summed over a response, `k1` is what Ziegler's KL
        targets are stated in.

    Raises:
        ValueError: the shapes differ, or `kind` is unknown.

    >>> kl_estimate(torch.tensor([[-1.0]]), torch.tensor([[-1.5]]))
    tensor([[0.5000]])
    >>> [round(kl_estimate(torch.tensor(-1.0), torch.tensor(-1.5), kind).item(), 4) for kind in ("k2", "k3", "abs")]
    [0.125, 0.1065, 0.5]
    """
    check_shapes(logprobs=logprobs, ref_logprobs=ref_logprobs)
    difference = at_least_float32(logprobs) - at_least_float32(ref_logprobs)
    if kind == "k1":
        return difference
    if kind == "k2":
        return difference.square() / 2
    if kind == "k3":
        return torch.expm1(-difference) + difference
    if kind == "abs":
        return difference.abs()
    raise ValueError(f"`kind` is {kind!r}; expected one of {', '.join(KINDS)}")


def best_of_n_kl(n: int) -> float:
    r"""Return the KL of best-of-n sampling to the policy sampled from, in nats per response: $\log n - (n - 1) / n$.

    It is an upper bound, reached if no two responses have the same score and none is probable. Source: Beirami et al.
    2024 (arXiv:2401.01879), theorem 1; the formula: Stiennon et al. 2020 (arXiv:2009.01325), appendix G.3.

    Args:
        n: samples per prompt, at least 1.

    Raises:
        ValueError: `n` is below 1.

    >>> best_of_n_kl(1), round(best_of_n_kl(4), 4)
    (0.0, 0.6363)
    """
    if n < 1:
        raise ValueError(f"`n` is {n}; expected at least 1")
    return math.log(n) - (n - 1) / n
