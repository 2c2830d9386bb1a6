"""The LightningModules, one per algorithm, and the base classes they share."""

from rlhf_lightning.algorithms.base import AlignmentModule
from rlhf_lightning.algorithms.cost import CostModule
from rlhf_lightning.algorithms.cpo import CPOModule
from rlhf_lightning.algorithms.dpo import DPOModule
from rlhf_lightning.algorithms.gkd import GKDModule
from rlhf_lightning.algorithms.ilql import ILQLModule
from rlhf_lightning.algorithms.kto import KTOModule
from rlhf_lightning.algorithms.nlpo import NLPOModule
from rlhf_lightning.algorithms.offline import Answers
from rlhf_lightning.algorithms.on_policy import OnPolicyModule
from rlhf_lightning.algorithms.online_dpo import OnlineDPOModule
from rlhf_lightning.algorithms.orpo import ORPOModule
from rlhf_lightning.algorithms.policy_gradient import PolicyGradientModule
from rlhf_lightning.algorithms.ppo import PPOModule
from rlhf_lightning.algorithms.ppo_lagrangian import PPOLagrangianModule
from rlhf_lightning.algorithms.preference import PreferenceModule
from rlhf_lightning.algorithms.process_reward import ProcessRewardModule
from rlhf_lightning.algorithms.raft import RAFTModule
from rlhf_lightning.algorithms.reward import RewardModule
from rlhf_lightning.algorithms.sft import SFTModule
from rlhf_lightning.algorithms.simpo import SimPOModule
from rlhf_lightning.algorithms.unpaired import UnpairedModule
from rlhf_lightning.experience.kl_control import (
    AdaptiveKLController,
    FixedKLController,
    KLController,
    KLPenalty,
    MultiplicativeKLController,
    PIDController,
)
from rlhf_lightning.experience.multiplier import CostMultiplier, MultiplierController
from rlhf_lightning.experience.pretraining_mix import PretrainingMix
from rlhf_lightning.experience.reward_shaping import RewardShaping, RunningMoments
from rlhf_lightning.training.strategies import FullySharded

__all__ = [
    "AdaptiveKLController",
    "AlignmentModule",
    "Answers",
    "CPOModule",
    "CostModule",
    "CostMultiplier",
    "DPOModule",
    "FixedKLController",
    "FullySharded",
    "GKDModule",
    "ILQLModule",
    "KLController",
    "KLPenalty",
    "KTOModule",
    "MultiplicativeKLController",
    "MultiplierController",
    "NLPOModule",
    "ORPOModule",
    "OnPolicyModule",
    "OnlineDPOModule",
    "PIDController",
    "PPOLagrangianModule",
    "PPOModule",
    "PolicyGradientModule",
    "PreferenceModule",
    "PretrainingMix",
    "ProcessRewardModule",
    "RAFTModule",
    "RewardModule",
    "RewardShaping",
    "RunningMoments",
    "SFTModule",
    "SimPOModule",
    "UnpairedModule",
]
