"""Models: loading, forward passes to log-probabilities, the value head, the reward model, the roles of PPO."""

from rlhf_lightning.models.adapters import NF4, LoRA
from rlhf_lightning.models.forward import (
    TokenPredictions,
    hidden_states,
    output_head,
    predict_tokens,
    response_logprobs,
    right_padded,
    scatter_tokens,
    sequence_logprobs,
)
from rlhf_lightning.models.guidance import guide, load_policy
from rlhf_lightning.models.loading import (
    disable_dropout,
    fingerprint,
    freeze,
    load_causal_lm,
    load_config,
    load_tokenizer,
    run_model_folder,
)
from rlhf_lightning.models.process_model import (
    ProcessRewardModel,
    load_process_reward_model,
    load_process_scorer,
    step_separator,
)
from rlhf_lightning.models.reward_model import RewardModel, ScoreMoments, load_reward_model, load_scorer, score_moments
from rlhf_lightning.models.roles import ActorCritic, Reference, SharedRewardModel
from rlhf_lightning.models.saving import end_of_sequence_ids, export_model, save_model
from rlhf_lightning.models.sharding import as_forward, shard, whole_weights
from rlhf_lightning.models.value_head import ValueHead

__all__ = [
    "NF4",
    "ActorCritic",
    "LoRA",
    "ProcessRewardModel",
    "Reference",
    "RewardModel",
    "ScoreMoments",
    "SharedRewardModel",
    "TokenPredictions",
    "ValueHead",
    "as_forward",
    "disable_dropout",
    "end_of_sequence_ids",
    "export_model",
    "fingerprint",
    "freeze",
    "guide",
    "hidden_states",
    "load_causal_lm",
    "load_config",
    "load_policy",
    "load_process_reward_model",
    "load_process_scorer",
    "load_reward_model",
    "load_scorer",
    "load_tokenizer",
    "output_head",
    "predict_tokens",
    "response_logprobs",
    "right_padded",
    "run_model_folder",
    "save_model",
    "scatter_tokens",
    "score_moments",
    "sequence_logprobs",
    "shard",
    "step_separator",
    "whole_weights",
]
