"""The loader that feeds PPO: collect a rollout, then yield it in minibatches."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from rlhf_lightning.data import SequenceBatch
from rlhf_lightning.models.transfer import to_device
from rlhf_lightning.rollout.container import Rollout
from rlhf_lightning.rollout.groups import rows_of_groups
from rlhf_lightning.setting_rules import check_parts
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count


class RolloutLoader:
    """One PPO iteration as one Trainer epoch.

    `__iter__` collects a rollout and yields `ppo_epochs` passes of `num_minibatches` minibatches over it, each as
    `accumulate` micro-batches. It is deliberately a plain sized iterable: Lightning prefetches one batch of a loader
    without a length (the next rollout would come from stale weights) and shards a map-style DataLoader a second time.

    Args:
        collect: returns a rollout from the current policy; called once per epoch.
        order: returns the generator that shuffles this epoch's minibatches.
        batch_size: prompts per rollout.
        total: sums a float over all processes.
        pretraining: returns the PPO-ptx batch of optimiser step i of this epoch, or None.
        samples_per_prompt: responses to each prompt, adjacent in the rollout.
        whole_groups: keep all responses to a prompt in one micro-batch.

    The masked sums of a micro-batch are divided by N / (accumulate * world_size), where N is the number of valid tokens
    of the whole minibatch on all processes: Lightning divides by `accumulate` and DDP averages over processes, so the
    step's gradient is the sum over tokens divided by N, however the minibatch was split. So it is with sums over
    responses. Responses that are not learned from do not count, and where there are no others the divisors are 1.

    Raises:
        UserError: no passes or no minibatches; the rollout does not divide into minibatches and micro-batches.
    """

    @checked("algorithm")
    def __init__(
        self,
        collect: Callable[[], Rollout],
        order: Callable[[], torch.Generator],
        batch_size: int,
        ppo_epochs: Count,
        num_minibatches: Count,
        accumulate: int = 1,
        world_size: int = 1,
        total: Callable[[float], float] = float,
        pretraining: Callable[[int], SequenceBatch | None] = lambda step: None,
        samples_per_prompt: int = 1,
        whole_groups: bool = False,
    ) -> None:
        check_parts(batch_size, samples_per_prompt, num_minibatches, accumulate, whole_groups)
        self.group_size = samples_per_prompt if whole_groups else 1
        self.collect, self.order, self.total, self.pretraining = collect, order, total, pretraining
        self.ppo_epochs, self.num_minibatches = ppo_epochs, num_minibatches
        self.accumulate, self.world_size = accumulate, world_size

    def __len__(self) -> int:
        return self.ppo_epochs * self.num_minibatches * self.accumulate

    def __iter__(self) -> Iterator[Rollout]:
        rollout = self.collect()
        generator, device, parts = self.order(), rollout.mask.device, self.accumulate * self.world_size
        lengths, learned = torch.stack([rollout.loss_mask.sum(dim=1), rollout.learned]).cpu()
        for epoch in range(self.ppo_epochs):
            groups = torch.randperm(len(rollout) // self.group_size, generator=generator, device="cpu")
            shuffled = rows_of_groups(groups, self.group_size)
            for i, minibatch in enumerate(shuffled.chunk(self.num_minibatches)):
                tokens, responses = (self.total(float(x[minibatch].sum())) or 1.0 for x in (lengths, learned))
                rollout.responses = responses / parts  # per micro-batch
                pretraining = self.pretraining(epoch * self.num_minibatches + i)
                for rows in to_device(minibatch, device).chunk(self.accumulate):
                    yield rollout.select(rows, tokens / parts, pretraining)
