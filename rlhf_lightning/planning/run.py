"""What the planner has to know of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from rlhf_lightning.planning.networks import Network
from rlhf_lightning.planning.passes import Loss, Rows

Sharding = Literal["none", "ddp", "zero1", "zero2", "zero3", "fsdp2"]


@dataclass(frozen=True)
class Devices:
    """Where the run is: how many processes, and what each of them holds a part of only.

    Args:
        sharding: `ddp` repeats everything; ZeRO shards the optimiser (1), gradients too (2), weights too (3 and FSDP2).
        gradient_copies: 2 where DDP's buckets are a copy of the gradients, and not views of them.
        cpu: no accelerator, so the optimiser steps through the parameters one by one.
    """

    processes: int = 1
    sharding: Sharding = "none"
    gradient_copies: int = 1
    cpu: bool = False


@dataclass(frozen=True)
class Optimizer:
    """Copies of the trained weights that the optimiser keeps: Adam 2 (3 with amsgrad), SGD 1 with momentum, else 0."""

    copies: int = 2


@dataclass(frozen=True)
class Rollout:
    """What is sampled in an iteration.

    Args:
        rows: responses per iteration and process.
        at_once: responses decoded at a time.
        prompt, response: tokens, at most.
        samples: responses to each prompt.
        engine: who samples: the policy itself, vLLM on the same device, or a server elsewhere.
        share: of the device that vLLM takes; `device` has so many bytes.
        sleeps: vLLM takes it while it samples only.
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
        """Bytes that vLLM takes."""
        return int(self.share * self.device)


@dataclass(frozen=True)
class RewardModel:
    """The network that scores what is sampled.

    Args:
        shared: it is an adapter on the policy's base; `network` is that base.
        rows: responses scored at a time.
    """

    network: Network
    rows: int
    shared: bool = False


@dataclass(frozen=True)
class Run:
    """A training run, as far as its memory goes.

    Args:
        policy: the trained network (the reward model, where that is trained).
        roles: of the networks that take part, the trained one first, as the algorithm declares them.
        pairs: a row is a chosen and a rejected answer.
        starts_from_adapter: the policy goes on training an adapter, whose start the reference needs a copy of.
        rows: a micro-batch.
        autocast: the type of products under a mixed precision.
        accumulate: micro-batches an optimiser step.
        keeps_reference: the reference is needed during training, not only before it; None: the algorithm has no choice.
        separate: a critic of its own, and copies in place of adapters.
        extra: PPO-ptx's rows.
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
