"""What the planner needs to know about a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from rlhf_lightning.planning.networks import Network
from rlhf_lightning.planning.passes import Loss, Rows

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]


@dataclass(frozen=True)
class Devices:
    """Where the run is: how many processes, and of what each of them holds only a part.

    Args:
        sharding: `ddp` replicates everything; ZeRO shards the optimiser (1), gradients too (2), weights too (3 and
            FSDP2).
        gradient_copies: 2 if DDP's buckets are a copy of the gradients rather than views of them.
        cpu: no accelerator, so the optimiser steps through the parameters one by one.
    """

    processes: int = 1
    sharding: Sharding = "none"
    gradient_copies: int = 1
    cpu: bool = False


@dataclass(frozen=True)
class Optimizer:
    """Copies of the trained weights in the optimiser: 2 for Adam (3 with amsgrad), 1 for SGD with momentum, else 0."""

    copies: int = 2


@dataclass(frozen=True)
class Rollout:
    """What an iteration samples.

    Args:
        rows: responses per iteration and process.
        at_once: responses decoded at a time.
        prompt, response: most tokens of each.
        samples: responses to each prompt.
        engine: who samples: the policy itself, vLLM on the same device, or a server elsewhere.
        share: share of the device that vLLM takes; `device` is its size in bytes.
        sleeps: vLLM takes it only while it samples.
    """

    rows: int
    at_once: int
    prompt: int
    response: int
    samples: int = 1
    engine: Literal["native", "vllm", "server"] = "native"
    share: float = 0.0
    device: int = 0
    sleeps: bool = False

    @property
    def taken(self) -> int:
        """Return the bytes that vLLM takes."""
        return int(self.share * self.device)


@dataclass(frozen=True)
class RewardModel:
    """The network that scores samples.

    Args:
        shared: it is an adapter on the policy's base; `network` is that base.
        rows: responses scored at a time.
        beside: other scoring networks, which stay in memory but are not larger; adapters on the base, if it is shared.
    """

    network: Network
    rows: int
    shared: bool = False
    beside: tuple[Network, ...] = ()


@dataclass(frozen=True)
class Run:
    """The properties of a training run that determine its memory.

    Args:
        policy: the trained network (the reward model, if that is trained).
        roles: roles of the networks that take part, the trained one first, as the algorithm declares them.
        pairs: a row is a chosen and a rejected answer.
        starts_from_adapter: the policy continues training an adapter, and the reference needs a copy of its start.
        rows: the rows of a micro-batch.
        autocast: the dtype of products under a mixed precision.
        accumulate: micro-batches per optimiser step.
        keeps_reference: the reference is needed during training, not only before it; None: the algorithm has no choice.
        separate: a separate critic, and copies instead of adapters.
        extra: PPO-ptx's rows.
        teacher: a frozen network whose distributions the policy learns.
        averaged: a moving average of the trained weights is kept.
    """

    name: str
    policy: Network
    rows: Rows
    roles: tuple[str, ...] = ("policy",)
    pairs: bool = False
    loss: Loss = field(default_factory=Loss)
    starts_from_adapter: bool = False
    autocast: torch.dtype | None = None
    accumulate: int = 1
    optimizer: Optimizer = field(default_factory=Optimizer)
    devices: Devices = field(default_factory=Devices)
    keeps_reference: bool | None = None
    separate: bool = False
    extra: Rows | None = None
    rollout: Rollout | None = None
    reward_model: RewardModel | None = None
    cost_model: RewardModel | None = None
    teacher: Network | None = None
    averaged: bool = False
