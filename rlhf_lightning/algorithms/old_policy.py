"""Log-probabilities and values of the policy that sampled: kept from the engine instead of computed again.

Both are of the same weights, in kernels of their own: they differ by rounding (1e-6 in float32), where those of the
trainer are to the bit what the reference computes from the same weights.
"""

from __future__ import annotations

from rlhf_lightning.errors import UserError
from rlhf_lightning.models import ActorCritic
from rlhf_lightning.rollout import NativeEngine, RolloutEngine


def keep_from_engine(engine: RolloutEngine, actor_critic: ActorCritic, importance_cap: float | None) -> None:
    """Let the engine keep what PPO needs of its policy: the values too, if their head reads the policy's states.

    Raises:
        UserError: an engine with kernels or weights of its own, or weights of tokens that would all be 1.
    """
    if not isinstance(engine, NativeEngine):
        raise UserError(
            f"algorithm.old_logprobs: found engine, but {type(engine).__name__} does not compute as the trainer does; "
            "choose rollout=native, or algorithm.old_logprobs=trainer"
        )
    if importance_cap is not None:
        raise UserError(
            f"algorithm.importance_cap: found {importance_cap} with algorithm.old_logprobs=engine, which leaves "
            "nothing to weigh; set it to null, or choose algorithm.old_logprobs=trainer"
        )
    engine.value_head = actor_critic.value_head if actor_critic.critic is None else None
