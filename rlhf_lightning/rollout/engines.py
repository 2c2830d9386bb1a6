"""From settings to the engine that they describe."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_lightning.rollout.container import RolloutSettings
from rlhf_lightning.rollout.engine import RolloutEngine
from rlhf_lightning.rollout.native import NativeEngine
from rlhf_lightning.rollout.vllm_engine import VLLMEngine
from rlhf_lightning.rollout.vllm_server import VLLMServer
from rlhf_lightning.rollout.vllm_settings import VLLMRollout


def make_engine(settings: RolloutSettings, pad_id: int, eos_ids: Sequence[int]) -> RolloutEngine:
    """Return the engine that `settings` describe; it starts, or connects, at its first `sync`."""
    if not isinstance(settings, VLLMRollout):
        return NativeEngine(pad_id, eos_ids, settings.generation_batch_size, settings.samples_per_prompt)
    kind = VLLMServer if settings.server else VLLMEngine
    return kind(pad_id, eos_ids, settings)
