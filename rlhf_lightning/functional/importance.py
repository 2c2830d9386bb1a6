"""Importance weights of tokens sampled by another policy than the one being trained."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import blank, check_positive, check_shapes


def truncated_importance_weights(logprobs: Tensor, sampling_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    r"""Return the weight of every token: $w_t = \min(\pi(y_t) / \mu(y_t),\; C)$.

    $\mu$ sampled the tokens and $\pi$ is the policy they should come from: the same model weights, computed by a
    rollout engine and by the trainer. A weighted mean over tokens estimates the mean under $\pi$, up to the effect of
    the cap; without the cap, one token that $\mu$ considered improbable could outweigh all others.

    Source: Ionides 2008, Truncated Importance Sampling; per token, for rollout engines: Yao et al. 2025, Your Efficient
    RL Framework Secretly Brings You Off-Policy RL Training.

    Args:
        logprobs: [B, T] in nats, under $\pi$ as the trainer computes it before the updates.
        sampling_logprobs: [B, T] in nats, under $\mu$ as the engine reports it.
        mask: [B, T], nonzero on valid tokens.
        cap: C.

    Returns:
        [B, T] in at least float32, detached; 0 outside the mask.

    Raises:
        ValueError: the shapes differ; `cap` is not above 0.

    >>> trainer = torch.tensor([[0.5, 0.5, 0.4, float("nan")]]).log()
    >>> engine = torch.tensor([[0.5, 0.1, 0.8, float("nan")]]).log()
    >>> truncated_importance_weights(trainer, engine, torch.tensor([[1, 1, 1, 0]]), cap=2.0)
    tensor([[1.0000, 2.0000, 0.5000, 0.0000]])
    """
    check_shapes(2, logprobs=logprobs, sampling_logprobs=sampling_logprobs, mask=mask)
    check_positive(cap=cap)
    valid = mask != 0
    ratio = torch.exp(blank(logprobs.detach(), valid) - blank(sampling_logprobs.detach(), valid))
    return blank(ratio.clamp(max=cap), valid)
