"""Implicit language Q-learning: its losses per token, and the logits that it decodes with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_lightning.functional._arguments import at_least_float32, blank, check_probability, check_shapes
from rlhf_lightning.functional.expectile import expectile_loss


class ILQLLosses(NamedTuple):
    """The terms of the loss, each [B, T] in at least float32, 0 outside the mask and without their weights."""

    q: Tensor
    value: Tensor
    conservative: Tensor
    policy: Tensor


def ilql_targets(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 0.99) -> Tensor:
    r"""Return what a Q-value is regressed on: $r_t + \gamma V(s_{t+1})$, with $V = 0$ after the last token.

    Source: Snell et al. 2022 (arXiv:2206.11871), section 4; Kostrikov et al. 2021 (arXiv:2110.06169), eq. 6.

    Args:
        rewards: [B, T], the reward of each token; a reward of the whole response is at its last token.
        values: [B, T], V of the state that each token is chosen in. No gradient flows into them.
        mask: [B, T], nonzero on valid tokens, which are adjacent in each row.
        gamma: $\gamma$, from 0 to 1.

    Returns:
        [B, T] in at least float32, 0 outside the mask.

    Raises:
        ValueError: the shapes differ, or `gamma` is outside [0, 1].

    >>> ilql_targets(torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[7.0, 4.0, 9.0]]), torch.tensor([[1, 1, 0]]), 0.5)
    tensor([[2., 2., 0.]])
    """
    check_shapes(2, rewards=rewards, values=values, mask=mask)
    check_probability(gamma=gamma)
    valid = mask != 0
    following = blank(values.detach(), valid)
    following = torch.cat([following[:, 1:], torch.zeros_like(following[:, :1])], dim=1)
    return blank(blank(rewards, valid) + gamma * following, valid)


def ilql_losses(
    q_values: Tensor,
    target_q_values: Tensor,
    values: Tensor,
    rewards: Tensor,
    q_logprobs: Tensor,
    logprobs: Tensor,
    mask: Tensor,
    gamma: float = 0.99,
    expectile: float = 0.7,
    awac_beta: float = 0.0,
) -> ILQLLosses:
    r"""Return the terms of ILQL's loss for every token.

    $$\sum_k (Q_k - r - \gamma V')^2, \quad |\tau - 1[e < 0]| e^2, \quad -\sum_k \log \mathrm{softmax}(Q_k)_a, \quad
    -e^{\beta e} \log \pi(a), \qquad e = \min_k \hat Q_k - V$$

    $\hat Q$ are the target heads; no gradient flows through them, through $V'$, or through the weight of the last term.

    Source: Snell et al. 2022 (arXiv:2206.11871), section 4, with twin heads as in Sea-Snell's code; the third term is
    CQL's (Kumar et al. 2020, arXiv:2006.04779), the last AWAC's (Nair et al. 2020, arXiv:2006.09359).

    Args:
        q_values: [K, B, T], each head's value of the chosen token.
        target_q_values: [K, B, T], the same under the target heads.
        values: [B, T], V of the state that each token is chosen in.
        rewards: [B, T], see `ilql_targets`.
        q_logprobs: [K, B, T], log softmax over the vocabulary of each head's values, at the chosen token.
        logprobs: [B, T], log pi of the chosen token, nats.
        mask: [B, T], nonzero on valid tokens, which are adjacent in each row.
        gamma: $\gamma$, from 0 to 1.
        expectile: $\tau$, between 0 and 1.
        awac_beta: $\beta$, how much more the policy imitates tokens of high advantage; 0: plain imitation.

    Returns:
        Four tensors [B, T]; the step's loss is their weighted sum over tokens.

    Raises:
        ValueError: the shapes differ, or a number is out of range.

    >>> one = torch.ones(1, 1)
    >>> heads = torch.stack([2 * one, 3 * one])
    >>> terms = ilql_losses(heads, heads, one, 5 * one, 0 * heads, -one, one, gamma=1.0, expectile=0.75)
    >>> [float(term) for term in terms]
    [13.0, 0.75, -0.0, 1.0]
    """
    check_shapes(3, q_values=q_values, target_q_values=target_q_values, q_logprobs=q_logprobs)
    check_shapes(2, mask=mask, values=values, rewards=rewards, logprobs=logprobs, q_values=q_values[0])
    valid = mask != 0
    targets = ilql_targets(rewards, values, mask, gamma)
    errors = blank(target_q_values.detach(), valid.expand_as(target_q_values)).amin(dim=0) - blank(values, valid)
    weights = torch.exp(awac_beta * errors.detach())
    return ILQLLosses(
        q=(blank(q_values, valid.expand_as(q_values)) - targets).square().sum(dim=0),
        value=expectile_loss(errors, expectile),
        conservative=-blank(q_logprobs, valid.expand_as(q_logprobs)).sum(dim=0),
        policy=-weights * blank(logprobs, valid),
    )


def guided_logits(logits: Tensor, q_values: Tensor, values: Tensor, strength: float) -> Tensor:
    r"""Return the logits that ILQL decodes with: $\log \pi(a) + b\,(\min_k \hat Q_k(a) - V)$.

    They come before temperature and filters such as top-k. Source: Snell et al. 2022 (arXiv:2206.11871), section 4; the
    authors decode with b from 8 to 16.

    Args:
        logits: [..., V], of the policy.
        q_values: [K, ..., V], of the target heads.
        values: [...], V of the same states.
        strength: b, per unit of reward; 0 leaves the policy.

    Returns:
        [..., V] in at least float32; their softmax is the distribution to sample from.

    Raises:
        ValueError: the shapes differ.

    >>> heads = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]]])
    >>> guided_logits(torch.zeros(1, 2), heads, torch.zeros(1), 1.0986123).softmax(-1)
    tensor([[0.7500, 0.2500]])
    """
    check_shapes(logits=logits, q_values=q_values[0])
    check_shapes(logits=logits[..., 0], values=values)
    logprobs = at_least_float32(logits).log_softmax(dim=-1)
    advantages = at_least_float32(q_values).amin(dim=0) - at_least_float32(values).unsqueeze(-1)
    return logprobs + strength * advantages
