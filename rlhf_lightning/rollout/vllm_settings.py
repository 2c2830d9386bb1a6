"""How responses are sampled with vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_lightning.addresses import check_address
from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout.container import RolloutSettings
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Seconds, Share, Text

Server = Annotated[str, Field(pattern=r"^https?://[^/]+", description="like http://host:port")]

# What the engine sets itself, from the policy and from the keys named here.
OWN_ARGUMENTS = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "gpu_memory_utilization": "rollout.gpu_memory_utilization",
    "skip_tokenizer_init": "tokens go in and come out",
    "seed": "seed",
    "logprobs_mode": "rollout.temperature",
    "max_num_seqs": "rollout.generation_batch_size",
    "enable_sleep_mode": "rollout.sleep",
    "enable_lora": "model/adapter",
    "max_loras": "model/adapter",
    "max_lora_rank": "model.adapter.rank",
    "distributed_executor_backend": "trainer.strategy",
}
ONE_DEVICE = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


@checked("rollout")
@dataclass(frozen=True)
class VLLMRollout(RolloutSettings):
    """An iteration's responses from vLLM: an engine in every process, or a server for all of them.

    Args:
        engine: `vllm`.
        server: address of a running `vllm serve`, such as `http://localhost:8000`; null: an engine in this process.
        gpu_memory_utilization: share of the device that an engine in this process takes for weights and cached keys.
        sleep: free the engine's device memory between rollouts.
        sync_dir: where weights are written for the engine to read, a folder that the server sees too; null: a temporary
            folder.
        timeout: most seconds per answer of the server.
        engine_args: further arguments of `vllm.LLM`, such as `max_model_len`; only without a server.
        generation_batch_size: prompts decoded at a time, with all their responses; null: as many as vLLM accepts.

    Raises:
        UserError: a server that is not an address; engine arguments that other keys decide, or that are given together
            with a server.
    """

    engine: Literal["vllm"] = "vllm"  # type: ignore[assignment]
    server: Server | None = None
    gpu_memory_utilization: Share = 0.4
    sleep: bool = False
    sync_dir: Text | None = None
    timeout: Seconds = 600.0
    engine_args: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.server:
            check_address("rollout.server", self.server, credentials=True)
        if self.server and self.engine_args:
            raise UserError(
                "rollout.engine_args: for an engine in this process; beside rollout.server give them to `vllm serve`"
            )
        for name, value in (self.engine_args or {}).items():
            if name in OWN_ARGUMENTS:
                raise UserError(f"rollout.engine_args.{name}: decided by {OWN_ARGUMENTS[name]}; leave it out")
            if name in ONE_DEVICE and value != 1:
                raise UserError(
                    f"rollout.engine_args.{name}: found {value}; an engine in this process has one "
                    "device; for more use a server: rollout.server=http://host:port"
                )
