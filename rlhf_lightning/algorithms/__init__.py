"""The LightningModules: SFT, reward model, PPO, DPO, and what PPO is steered by."""

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.algorithms.dpo import DPOModule
from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.on_policy import OnPolicyModule
from rlhf_lightning.algorithms.ppo import PPOModule
from rlhf_lightning.algorithms.preference import PreferenceModule
from rlhf_lightning.algorithms.reward import RewardModule
from rlhf_lightning.algorithms.sft import SFTModule
from rlhf_lightning.experience.kl_control import (
    AdaptiveKLController,
    FixedKLController,
    KLController,
    KLPenalty,
    MultiplicativeKLController,
    PIDController,
)
from rlhf_lightning.experience.pretraining_mix import PretrainingMix
from rlhf_lightning.experience.reward_shaping import RewardShaping, RunningMoments
from rlhf_lightning.training.strategies import FullySharded

__all__ = [
    "AdaptiveKLController",
    "AlignmentModule",
    "Answers",
    "DPOModule",
    "FixedKLController",
    "FullySharded",
    "KLController",
    "KLPenalty",
    "MultiplicativeKLController",
    "OnPolicyModule",
    "PIDController",
    "PPOModule",
    "PreferenceModule",
    "PretrainingMix",
    "RewardModule",
    "RewardShaping",
    "RunningMoments",
    "SFTModule",
]
