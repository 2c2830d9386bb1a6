"""Rollouts with vLLM in the trainer's process, on the trainer's device."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from rlhf_lightning.errors import VLLM_NOT_INSTALLED, UserError
from rlhf_lightning.models.adapters import has_adapter
from rlhf_lightning.rollout.engine import Engine, Generation, SamplingSettings
from rlhf_lightning.rollout.isolation import isolated
from rlhf_lightning.rollout.policy_weights import (
    adapter_rank,
    base_source,
    check_output_layer,
    computing_dtype,
    named_weights,
    write_weights,
)
from rlhf_lightning.rollout.responses import Response, row_seeds, sampling_arguments, to_generation
from rlhf_lightning.rollout.vllm_settings import VLLMRollout

ADAPTER_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # largest ranks that vLLM accepts

# Read by vLLM when it is imported or started; what the user has set stays.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, so that it is given tensors rather than files
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class VLLMEngine(Engine):
    """vLLM with its own copy of the base, which gets the trained weights before every rollout.

    An adapter is passed as files and gets a new name and number each time, since vLLM caches adapters by number and
    prompts by name; the previous one is removed. Without an adapter all weights are copied, tensor by tensor, and
    cached prompts are discarded.

    Args:
        pad_id: pads short responses.
        eos_ids: any of them ends a response.
        settings: see VLLMRollout.
    """

    def __init__(self, pad_id: int, eos_ids: Sequence[int], settings: VLLMRollout) -> None:
        self.pad_id, self.eos_ids, self.settings = pad_id, sorted(set(eos_ids)), settings
        self.llm: Any = None
        self.device: torch.device | None = None
        self._adapter: Any = None
        self._syncs = 0
        self._asleep = False
        self._made_group = False
        self._variables: list[str] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def sync(self, model: nn.Module) -> None:
        """Give the engine the policy's weights; the first time, start it.

        Raises:
            UserError: vLLM is not installed, or cannot run this model with these arguments.
        """
        self.device = next(model.parameters()).device
        computed = computing_dtype(model)  # before leaving the trainer's autocast
        with isolated():
            if self.llm is None:
                check_output_layer(model)
                self._start(model, computed)
            self._wake("weights")
            if has_adapter(model):
                self._sync_adapter(model)
            else:
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": named_weights(model)})
                self.llm.reset_prefix_cache()
            self._wake("kv_cache")
        self._asleep = False

    def generate(
        self, prompts: list[list[int]], settings: SamplingSettings, generator: torch.Generator | None = None
    ) -> Generation:
        """Return one response per prompt, in order; then sleep, if asked to."""
        assert self.llm is not None and self.device is not None, "call sync(model) first"
        import vllm

        seeds = row_seeds(len(prompts), generator)
        parameters = [
            vllm.SamplingParams(**sampling_arguments(settings, seed, self.eos_ids), detokenize=False) for seed in seeds
        ]
        rows = [{"prompt_token_ids": ids} for ids in prompts]
        with isolated():
            try:
                outputs = self.llm.generate(rows, parameters, lora_request=self._adapter, use_tqdm=False)
            except ValueError as error:  # for example a prompt longer than the engine's max_model_len
                raise UserError(f"rollout.engine: vLLM refuses a prompt: {error}") from error
            if self.settings.sleep:
                self.llm.sleep(level=1 if self._adapter else 2)  # all weights are sent again, but a base is not
                self._asleep = True
        responses = [_response(output.outputs[0]) for output in outputs]
        return to_generation(responses, settings, self.pad_id, self.eos_ids, self.device, "rollout.engine: vLLM")

    def close(self) -> None:
        """Release the device's memory. The next `sync` starts the engine again."""
        if self.llm is None:
            return
        self.llm.llm_engine.engine_core.shutdown()
        for name in self._variables:
            os.environ.pop(name, None)
        self.llm, self._adapter, self._asleep = None, None, False
        if self._made_group:
            from vllm.distributed import cleanup_dist_env_and_memory

            cleanup_dist_env_and_memory()
        gc.collect()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _start(self, model: nn.Module, computed: torch.dtype) -> None:
        had_group = distributed.is_initialized()
        wanted = dict(ENVIRONMENT)
        if had_group:
            # torchrun sets both; Lightning in its first process sets neither.
            wanted["RANK"] = str(distributed.get_rank())
            wanted["LOCAL_RANK"] = str(next(model.parameters()).device.index or 0)
        self._variables = [name for name in wanted if name not in os.environ]  # removed when the engine is closed
        os.environ.update({name: wanted[name] for name in self._variables})
        try:
            from vllm import LLM
        except ModuleNotFoundError as error:
            raise UserError(VLLM_NOT_INSTALLED) from error
        try:
            self.llm = LLM(**self._arguments(model, computed, had_group))
        except (ValueError, RuntimeError, OSError, AssertionError) as error:
            raise UserError(f"rollout.engine: vLLM cannot start: {error}") from error
        self._made_group = not had_group and distributed.is_initialized()

    def _arguments(self, model: nn.Module, computed: torch.dtype, had_group: bool) -> dict[str, Any]:
        """Return the arguments of `vllm.LLM`: the policy's base, computed as the trainer computes."""
        source, revision = base_source(model)
        arguments: dict[str, Any] = {
            "model": source,
            "revision": revision,
            "dtype": str(computed).removeprefix("torch."),
            "skip_tokenizer_init": True,
            "logprobs_mode": "processed_logprobs",  # of the tempered distribution that is sampled from
            "seed": 0,  # every request has its own seed
            "gpu_memory_utilization": self.settings.gpu_memory_utilization,
            "enable_sleep_mode": self.settings.sleep,
            "disable_log_stats": True,
        }
        if self.settings.responses_at_once is not None:
            arguments["max_num_seqs"] = self.settings.responses_at_once
        if has_adapter(model):
            rank = next((size for size in ADAPTER_RANKS if size >= adapter_rank(model)), ADAPTER_RANKS[-1])
            arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank}
        if had_group:
            # One engine per process, next to the trainer's process group; each works alone.
            arguments["distributed_executor_backend"] = "external_launcher"
        return arguments | (self.settings.engine_args or {})

    def _sync_adapter(self, model: nn.Module) -> None:
        from vllm.lora.request import LoRARequest

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="rlhf-lightning-", dir=self.settings.sync_dir)
        former, self._syncs = self._adapter, self._syncs + 1
        folder = Path(self._folder.name) / str(self._syncs)
        write_weights(model, folder)
        if former is not None:
            self.llm.llm_engine.remove_lora(former.lora_int_id)
        self._adapter = LoRARequest(f"policy-{self._syncs}", self._syncs, str(folder))
        try:
            self.llm.llm_engine.add_lora(self._adapter)
        except ValueError as error:
            raise UserError(f"model/adapter: vLLM cannot take this adapter: {error}") from error
        if former is not None:
            shutil.rmtree(former.lora_path)

    def _wake(self, part: str) -> None:
        if self._asleep:
            self.llm.wake_up(tags=[part])


def _response(output: Any) -> Response:
    """Return token ids and log-probabilities of vLLM's CompletionOutput."""
    tokens = [int(token) for token in output.token_ids]
    return Response(tokens, [step[token].logprob for token, step in zip(tokens, output.logprobs, strict=True)])
