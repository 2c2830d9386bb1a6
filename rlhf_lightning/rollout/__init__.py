"""Rollouts: engines that generate, the container, and the loader that turns a rollout into minibatches."""

from rlhf_lightning.rollout.container import Rollout, RolloutSettings
from rlhf_lightning.rollout.engine import (
    Engine,
    Generation,
    RolloutEngine,
    SamplingSettings,
    as_engine,
    seeded_generator,
    token_rows,
)
from rlhf_lightning.rollout.engines import make_engine
from rlhf_lightning.rollout.groups import rows_of_groups
from rlhf_lightning.rollout.loader import RolloutLoader
from rlhf_lightning.rollout.masked import TopPMask
from rlhf_lightning.rollout.microbatches import rows_by_tokens
from rlhf_lightning.rollout.native import NativeEngine
from rlhf_lightning.rollout.order import endless_order
from rlhf_lightning.rollout.vllm_engine import VLLMEngine
from rlhf_lightning.rollout.vllm_server import VLLMServer
from rlhf_lightning.rollout.vllm_settings import VLLMRollout

__all__ = [
    "Engine",
    "Generation",
    "NativeEngine",
    "Rollout",
    "RolloutEngine",
    "RolloutLoader",
    "RolloutSettings",
    "SamplingSettings",
    "TopPMask",
    "VLLMEngine",
    "VLLMRollout",
    "VLLMServer",
    "as_engine",
    "endless_order",
    "make_engine",
    "rows_by_tokens",
    "rows_of_groups",
    "seeded_generator",
    "token_rows",
]
