"""Models: loading, forward passes to log-probabilities, the value head, the reward model, the roles of PPO."""

from rlhf_lightning.models.adapters import NF4, LoRA, save_network
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
from rlhf_lightning.models.loading import (
    disable_dropout,
    fingerprint,
    freeze,
    load_causal_lm,
    load_config,
    load_tokenizer,
    run_model_folder,
)
from rlhf_lightning.models.reward_model import RewardModel, load_reward_model
from rlhf_lightning.models.roles import ActorCritic, Reference, SharedRewardModel
from rlhf_lightning.models.value_head import ValueHead

__all__ = [
    "NF4",
    "ActorCritic",
    "LoRA",
    "Reference",
    "RewardModel",
    "SharedRewardModel",
    "TokenPredictions",
    "ValueHead",
    "disable_dropout",
    "fingerprint",
    "freeze",
    "hidden_states",
    "load_causal_lm",
    "load_config",
    "load_reward_model",
    "load_tokenizer",
    "output_head",
    "predict_tokens",
    "response_logprobs",
    "right_padded",
    "run_model_folder",
    "save_network",
    "scatter_tokens",
    "sequence_logprobs",
]
