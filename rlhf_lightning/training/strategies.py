"""How a run is spread over processes, where Lightning's own classes need a word from us."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.strategies import ModelParallelStrategy


class FullySharded(ModelParallelStrategy):
    """FSDP2 over all processes of all nodes; checkpoints are single files, which any number of processes resumes.

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
        """Lightning's `auto` is the number of nodes; ours is the number of processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
