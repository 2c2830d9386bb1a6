"""Where scores come from: a reward model, a Python function, a judge, or a weighted sum of several."""

from rlhf_lightning.rewards.cost import make_cost
from rlhf_lightning.rewards.ensemble import Ensemble
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.judge import JudgeReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.process import ProcessReward
from rlhf_lightning.rewards.protocol import Reward, RewardFunction, as_reward
from rlhf_lightning.rewards.remote import RemoteReward
from rlhf_lightning.rewards.samples import SampledTokens, sample_scores, score_samples
from rlhf_lightning.rewards.scores import Scores, check_result, check_scores, per_token, totals
from rlhf_lightning.rewards.steps import StepwiseReward
from rlhf_lightning.rewards.verifiers import code_runs, exact_match, format_match, math_verify
from rlhf_lightning.rewards.weighted import WeightedSum, make_reward

__all__ = [
    "Ensemble",
    "FunctionReward",
    "JudgeReward",
    "ModelReward",
    "ProcessReward",
    "RemoteReward",
    "Reward",
    "RewardFunction",
    "SampledTokens",
    "Scores",
    "StepwiseReward",
    "WeightedSum",
    "as_reward",
    "check_result",
    "check_scores",
    "code_runs",
    "exact_match",
    "format_match",
    "make_cost",
    "make_reward",
    "math_verify",
    "per_token",
    "sample_scores",
    "score_samples",
    "totals",
]
