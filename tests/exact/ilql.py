"""ILQL in the enumerable world: the values that it should find, by backward enumeration, and its training.

The data are the reference's responses, each as often as the reference gives it. At the minimum of the loss both Q heads
are equal, and with a conservative weight of 0, for the data's probability p of token a in state s,

    Q(s, a) = r + gamma V(s'),        V(s) = the tau-expectile of Q(s, a) with a drawn from p

With a conservative weight c, Q(s, .) minimises sum_a p (Q_a - y_a)^2 + c (log sum exp Q - sum_a p Q_a) instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rlhf_lightning.algorithms import ILQLModule
from rlhf_lightning.data import RewardedBatch
from rlhf_lightning.functional import guided_logits
from rlhf_lightning.models.forward import states_before
from rlhf_lightning.models.guidance import guide
from rlhf_lightning.models.ilql_heads import TargetHeads
from tests.exact.enumerable import World
from tests.exact.runs import fit, linear_to_zero

STEPS = 1500
LEARNING_RATE = 3e-3
SETTINGS: dict[str, Any] = {"gamma": 0.99, "expectile": 0.7, "target_rate": 0.005, "cql_weight": 0.0}


def expectile(q: Tensor, p: Tensor, tau: float) -> Tensor:
    """Return the tau-expectile over the last dimension, where the data has probabilities p."""
    value = (p * q).sum(dim=-1)
    for _ in range(200):
        weights = p * torch.where(q < value.unsqueeze(-1), 1 - tau, tau)
        value = (weights * q).sum(dim=-1) / weights.sum(dim=-1)
    return value


def conservative(y: Tensor, p: Tensor, c: float) -> Tensor:
    """Return the Q [..., V] of the docstring's last line, by Newton's method."""
    q = y.clone()
    for _ in range(100):
        s = q.softmax(dim=-1)
        gradient = 2 * p * (q - y) + c * (s - p)
        hessian = torch.diag_embed(2 * p + c * s) - c * s.unsqueeze(-1) * s.unsqueeze(-2)
        q = q - torch.linalg.solve(hessian, gradient)
    return q


def exact_values(world: World, gamma: float, expectile_: float, cql_weight: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return Q [P, V^t, V] and V [P, V^t] of every state after t tokens, for t from 0 to T - 1; float64."""
    tokens = world.token_logprobs(world.load_model()).detach().double()
    n_prompts, _, length = tokens.shape
    following, qs, values = world.rewards, [], []
    for t in reversed(range(length)):
        shape = (n_prompts, world.vocabulary**t, world.vocabulary)
        p = tokens[:, :: world.vocabulary ** (length - 1 - t), t].exp().view(shape)
        y = following.view(shape) * (1.0 if t == length - 1 else gamma)
        q = conservative(y, p, cql_weight) if cql_weight else y
        qs.append(q)
        values.append(expectile(q, p, expectile_))
        following = values[-1]
    return qs[::-1], values[::-1]


def exact_decoding(world: World, qs: list[Tensor], values: list[Tensor], strength: float) -> Tensor:
    """Return log pi [P, N] of the policy that decodes from the reference with these values."""
    tokens = world.token_logprobs(world.load_model()).detach().double()
    n_prompts, n, length = tokens.shape
    total = torch.zeros(n_prompts, n, dtype=torch.float64)
    for t in range(length):
        shape = (n_prompts, world.vocabulary**t, world.vocabulary)
        p = tokens[:, :: world.vocabulary ** (length - 1 - t), t].view(shape)
        decoded = guided_logits(p, qs[t].unsqueeze(0), values[t], strength).log_softmax(dim=-1)
        total += decoded.reshape(n_prompts, -1).repeat_interleave(world.vocabulary ** (length - 1 - t), dim=1)
    return total


class EveryAnswer(L.LightningDataModule):
    """Every response to every prompt in one batch, weighted by how often the reference gives it."""

    def __init__(self, world: World, steps: int) -> None:
        super().__init__()
        self.world, self.steps = world, steps

    def train_dataloader(self) -> EveryAnswer:
        return self

    def __len__(self) -> int:
        return self.steps

    def batch(self) -> RewardedBatch:
        world = self.world
        ids, flags = world.rows()
        last = flags.cumsum(1).eq(world.length) & flags.bool()
        return RewardedBatch(
            ids,
            attention_mask=(ids != world.vocabulary).long(),
            completion_mask=flags,
            rewards=last * world.rewards.flatten().float().unsqueeze(1),
            weights=world.ref.exp().flatten().float(),
            denominator=float(len(world.prompts)),
        )

    def __iter__(self) -> Iterator[RewardedBatch]:
        batch = self.batch()
        for _ in range(self.steps):
            yield batch


@dataclass(frozen=True)
class ILQLResult:
    """The largest errors of Q (of the target heads) and V over all states, and log pi [P, N] of what is decoded.

    For each strength there is the trained policy, and the one that the exact values would give.
    """

    q_error: float
    v_error: float
    policies: dict[float, tuple[Tensor, Tensor]]
    seconds: float


def train_ilql(world: World, seed: int, strengths: Sequence[float] = (), **settings: Any) -> ILQLResult:
    """Train on every answer, and compare values and decoding policies with the exact ones."""
    torch.manual_seed(seed)
    settings = {**SETTINGS, **settings}
    optimizer = partial(torch.optim.Adam, lr=LEARNING_RATE)
    module = ILQLModule(world.load_model, world.tokenizer, optimizer, linear_to_zero, **settings)
    seconds = fit(module, EveryAnswer(world, STEPS), max_epochs=1)
    qs, values = exact_values(world, settings["gamma"], settings["expectile"], settings["cql_weight"])
    heads = TargetHeads(module.heads.value.features.in_features, world.vocabulary)
    heads.load_state_dict(module.heads.decoding_weights())
    ids, flags = world.rows()
    shape = (len(world.prompts), len(world.responses), world.length)
    with torch.no_grad():
        q, v = heads(states_before(module.model, ids, flags))
    q, v = q.amin(dim=0).double().view(*shape, world.vocabulary), v.double().view(shape)
    steps = [len(world.responses) // world.vocabulary**t for t in range(world.length)]
    q_error = max(float((q[:, ::step, t] - qs[t]).abs().max()) for t, step in enumerate(steps))
    v_error = max(float((v[:, ::step, t] - values[t]).abs().max()) for t, step in enumerate(steps))
    guide(module.model, heads, 1.0)
    policies = {}
    for strength in strengths:
        module.model.guidance.strength = strength
        policies[strength] = (world.logprobs(module.model), exact_decoding(world, qs, values, strength))
    return ILQLResult(q_error, v_error, policies, seconds)
