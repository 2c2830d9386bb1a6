"""Distributing a run over processes, where Lightning's own classes need adjustment."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes; checkpoints are single files, which any number of processes can resume.

    Args:
        process_group_backend: null: nccl on GPUs, gloo on CPUs.
    """

    def __init__(self, process_group_backend: Literal["nccl", "gloo"] | None = None) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Shard over all processes; Lightning's `auto` would shard over the number of nodes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
