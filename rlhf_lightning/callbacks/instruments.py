"""Training speed: tokens per second, and the share of the machine's peak that they use."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_lightning.algorithms import AlignmentModule
from rlhf_lightning.data import PreferenceBatch, RewardedBatch, SequenceBatch, StepBatch, UnpairedBatch
from rlhf_lightning.experience.stopwatch import now
from rlhf_lightning.kernels.fast_products import product
from rlhf_lightning.models.operations import Operations, operations_of
from rlhf_lightning.rollout import Rollout

# Batches whose tokens are counted.
READ = (Rollout, SequenceBatch, PreferenceBatch, UnpairedBatch, RewardedBatch, StepBatch)
SECONDS = 0.3  # spent on measuring the peak
SIZES = (256, 512, 1024, 2048, 4096, 8192)


class Instruments(Callback):
    """Records tokens per second and model FLOP utilisation of PPO's updates, or of other algorithms' training steps.

        mfu = operations that the batches need / seconds / operations per second of a square matrix product

    (Chowdhery et al. 2022, section 4.1; `models.operations` counts the operations.) Padding counts as nothing, and so
    does the prompt of a pair's second answer; what a method must compute besides its step counts, such as DPO's
    reference. The product is measured once when training starts, in the dtype of the run's products and on its device,
    for at most 0.3 seconds. Time runs from batch to batch, including data loading but not the validation or checkpoints
    of a logged step. Each process is compared with its own product.

    Nothing here draws from the run's random numbers. Modules and batches that are not this package's are ignored.
    """

    def __init__(self) -> None:
        self._networks: list[Operations] = []
        self._peak = 0.0
        self._clear()

    def _clear(self) -> None:
        self._needed: list[Tensor] = []  # of every batch since the last record: tokens, pairs, predicted tokens
        self._extra: list[Tensor] = []  # the same for PPO-ptx's rows
        self._seconds = 0.0  # up to the last pause
        self._since: float | None = None  # when timing resumed after it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        networks = trained_networks(pl_module)
        self._networks = [operations_of(network) for network in networks]
        if networks:
            self._peak = peak_operations(pl_module.device, product_type(trainer, networks[0]))
        self._clear()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._since is None:
            self._since = now(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._networks or not isinstance(batch, READ):
            return
        self._needed.append(needed(batch))
        if isinstance(batch, Rollout) and batch.pretraining is not None:
            self._extra.append(needed(batch.pretraining))
        if not _on_policy(pl_module) and pl_module.logs_after(batch_idx):  # type: ignore[operator]
            self._record(pl_module, "")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(pl_module)
        if _on_policy(pl_module):  # logged at its epoch's end
            self._record(pl_module, "update_")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._pause(pl_module)

    def _pause(self, pl_module: LightningModule) -> None:
        if self._since is not None:
            self._seconds += now(pl_module.device) - self._since
            self._since = None

    def _record(self, pl_module: Any, what: str) -> None:
        """Record the stretch since the last record, weighted by its duration."""
        self._pause(pl_module)
        if not self._needed:
            return
        tokens, pairs, predicted = _total(self._needed)
        policy, *critics = self._networks
        operations = policy.step(tokens, pairs, predicted)
        operations += sum(critic.step(tokens, pairs, 0) for critic in critics)
        if (
            "reference" in pl_module.roles
            and not _on_policy(pl_module)
            and not getattr(pl_module, "reference_table", None)
        ):
            operations += policy.forward(tokens, pairs, predicted)
        if self._extra:
            more = _total(self._extra)
            tokens, operations = tokens + more[0], operations + policy.step(*more)
        pl_module.record(f"perf/{what}tokens_per_second", tokens / self._seconds, self._seconds)
        pl_module.record("perf/mfu", operations / self._seconds / self._peak, self._seconds)
        pl_module.record("perf/peak_teraflops", self._peak / 1e12)
        self._clear()


def trained_networks(module: LightningModule) -> list[nn.Module]:
    """Return the policy (or reward model), and the critic if it is a separate network; none for a foreign module."""
    return module.trained_networks() if isinstance(module, AlignmentModule) else []


def _on_policy(module: LightningModule) -> bool:
    return getattr(module, "data", None) == "prompts"


def needed(batch: Any) -> Tensor:
    """Return what the rows of a batch need, each alone and without padding, [3] integers.

    The three are tokens, pairs of a token and one that it attends to, and predicted tokens.
    """
    if isinstance(batch, Rollout):
        return _needed(batch.lengths, torch.zeros_like(batch.lengths), batch.mask.sum())
    lengths = batch.attention_mask.sum(dim=1)
    if isinstance(batch, SequenceBatch):
        return _needed(lengths, torch.zeros_like(lengths), (batch.labels != -100).sum())
    if isinstance(batch, StepBatch):
        return _needed(lengths, torch.zeros_like(lengths), batch.ends.sum())
    if isinstance(batch, UnpairedBatch | RewardedBatch):
        return _needed(lengths, torch.zeros_like(lengths), batch.completion_mask.sum())
    return _needed(lengths, _shared_prompts(batch), batch.completion_mask.sum())


def _needed(lengths: Tensor, shared: Tensor, predicted: Tensor) -> Tensor:
    """Return the same for rows whose first `shared` tokens another row computes."""
    pairs = (lengths * (lengths + 1) - shared * (shared + 1)) // 2
    return torch.stack([(lengths - shared).sum(), pairs.sum(), predicted.long()])


def _shared_prompts(batch: PreferenceBatch) -> Tensor:
    """Return the prompt tokens of each row, [N]; 0 for the first of a prompt's answers, which are adjacent."""
    prompts, ids = batch.prompt_lengths, batch.input_ids
    inside = torch.arange(ids.shape[1], device=ids.device) < prompts[1:, None]
    same = ((ids[1:] == ids[:-1]) | ~inside).all(dim=1) & (prompts[1:] == prompts[:-1])
    return torch.cat([prompts[:1] * 0, prompts[1:] * same])


def _total(batches: list[Tensor]) -> list[float]:
    total: list[float] = torch.stack(batches).sum(dim=0).tolist()
    return total


def product_type(trainer: Trainer, network: nn.Module) -> torch.dtype:
    """Return the dtype of the network's matrix products under the trainer's precision."""
    layer: Any = next(module for module in network.modules() if isinstance(module, nn.Linear | Conv1D))
    dtype = getattr(layer, "compute_dtype", None) or layer.weight.dtype  # 4-bit weights are computed in another dtype
    with trainer.precision_plugin.forward_context():
        one = torch.ones(1, 1, dtype=dtype, device=layer.weight.device)
        return (one @ one).dtype


def peak_operations(device: torch.device | str, dtype: torch.dtype) -> float:
    """Return operations per second of a square matrix product: the best over growing sizes, within the time limit."""
    generator = torch.Generator(device).manual_seed(0)
    began, best = time.perf_counter(), 0.0
    for size in SIZES:
        left, right = (torch.randn(size, size, dtype=dtype, device=device, generator=generator) for _ in range(2))
        shortest = min(_seconds(left, right) for _ in range(4))
        best = max(best, 2 * size**3 / shortest)
        if time.perf_counter() - began + 4 * 8 * shortest > SECONDS:  # twice the size takes eight times as long
            break
    return best


def _seconds(left: Tensor, right: Tensor) -> float:
    started = now(left.device)
    product(left, right)
    return now(left.device) - started
