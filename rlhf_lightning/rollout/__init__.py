"""Rollouts: engines that generate, the container, and the loader that turns a rollout into minibatches."""

from rlhf_lightning.rollout.container import Rollout, RolloutSettings
from rlhf_lightning.rollout.engine import Generation, RolloutEngine, SamplingSettings, seeded_generator
from rlhf_lightning.rollout.loader import RolloutLoader
from rlhf_lightning.rollout.native import NativeEngine
from rlhf_lightning.rollout.order import endless_order

__all__ = [
    "Generation",
    "NativeEngine",
    "Rollout",
    "RolloutEngine",
    "RolloutLoader",
    "RolloutSettings",
    "SamplingSettings",
    "endless_order",
    "seeded_generator",
]
