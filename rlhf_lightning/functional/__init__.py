"""The mathematics of RLHF as pure functions of tensors: no module, no config, no logging, no device moves.

Shapes: B rows, T response tokens, V vocabulary, N answers, M pairs of answers. `mask` is nonzero on valid tokens,
including the EOS; what lies outside the mask is never read, so NaN there reaches neither a value nor a gradient.
Log-probabilities, KL and entropy are in nats. Half-precision inputs are computed and returned in float32; float64 stays
float64. A wrong shape raises a ValueError that names the argument.
"""

from rlhf_lightning.functional.advantages import generalized_advantage_estimate, group_advantages, token_rewards
from rlhf_lightning.functional.allowed import count_allowed, pack_allowed, top_p_mask, unpack_allowed
from rlhf_lightning.functional.answers import kto_loss, log_odds, odds_ratio_loss, simpo_loss
from rlhf_lightning.functional.distillation import chunked_divergences, generalized_jsd
from rlhf_lightning.functional.expectile import expectile_loss
from rlhf_lightning.functional.ilql import ILQLLosses, guided_logits, ilql_losses, ilql_targets
from rlhf_lightning.functional.importance import truncated_importance_weights
from rlhf_lightning.functional.kl import best_of_n_kl, kl_estimate
from rlhf_lightning.functional.lengths import overlong_penalty
from rlhf_lightning.functional.logprobs import IGNORE_INDEX, chunked_token_logprobs, entropy, token_logprobs
from rlhf_lightning.functional.masking import masked_mean, masked_var, masked_whiten
from rlhf_lightning.functional.ppo import cispo_loss, policy_gradient_loss, ppo_policy_loss, ppo_value_loss
from rlhf_lightning.functional.preference import answer_logps, dpo_loss, implicit_rewards
from rlhf_lightning.functional.process import aggregate_steps, process_reward_loss
from rlhf_lightning.functional.reward import (
    bradley_terry_loss,
    calibration_error,
    centering_penalty,
    cost_model_loss,
    preference_accuracy,
    ranked_preference_loss,
)

__all__ = [
    "IGNORE_INDEX",
    "ILQLLosses",
    "aggregate_steps",
    "answer_logps",
    "best_of_n_kl",
    "bradley_terry_loss",
    "calibration_error",
    "centering_penalty",
    "chunked_divergences",
    "chunked_token_logprobs",
    "cispo_loss",
    "cost_model_loss",
    "count_allowed",
    "dpo_loss",
    "entropy",
    "expectile_loss",
    "generalized_advantage_estimate",
    "generalized_jsd",
    "group_advantages",
    "guided_logits",
    "ilql_losses",
    "ilql_targets",
    "implicit_rewards",
    "kl_estimate",
    "kto_loss",
    "log_odds",
    "masked_mean",
    "masked_var",
    "masked_whiten",
    "odds_ratio_loss",
    "overlong_penalty",
    "pack_allowed",
    "policy_gradient_loss",
    "ppo_policy_loss",
    "ppo_value_loss",
    "preference_accuracy",
    "process_reward_loss",
    "ranked_preference_loss",
    "simpo_loss",
    "token_logprobs",
    "token_rewards",
    "top_p_mask",
    "truncated_importance_weights",
    "unpack_allowed",
]
