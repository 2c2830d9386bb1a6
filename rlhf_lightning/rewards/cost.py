"""Where costs come from: a function, or a cost model, whose sign says whether an answer is safe."""

from __future__ import annotations

from rlhf_lightning.errors import UserError, key_beside, named, named_as
from rlhf_lightning.models.loading import Dtype
from rlhf_lightning.models.reward_model import is_cost_model
from rlhf_lightning.rewards.function import FunctionReward
from rlhf_lightning.rewards.model import ModelReward
from rlhf_lightning.rewards.protocol import RewardFunction
from rlhf_lightning.setting_rules import check_cost, unsigned_cost
from rlhf_lightning.value_types import Attention, Count, Seconds, Text


def make_cost(
    function: Text | None = None,
    model: Text | None = None,
    signed: bool = True,
    batch_size: Count = 32,
    dtype: Dtype = "float32",
    attn_implementation: Attention | None = None,
    timeout: Seconds | None = None,
) -> RewardFunction:
    """Return the cost that the settings describe: exactly one of the first two. Higher is worse.

    Args:
        function: dotted path of a Python function (see RewardFunction) that returns costs.
        model: a cost model's run folder, Hugging Face folder or hub name.
        signed: refuse a model that was trained without sign terms: its 0 does not separate safe from unsafe answers,
            and of a reward model even the direction is wrong. False: take whatever it returns as a cost.
        batch_size: responses that a cost model scores at a time.
        dtype, attn_implementation: for a cost model, see `load_causal_lm`.
        timeout: most seconds per call of a function; None: no limit.

    Raises:
        UserError: none or both are given, a setting that the other one has, or a model without sign terms.
    """
    given = {"function": function, "model": model, "signed": signed, "dtype": dtype}
    check_cost({**given, "attn_implementation": attn_implementation, "timeout": timeout}, key_beside("", "cost."))
    if function:
        key, limit = key_beside("function", "cost."), key_beside("timeout", "cost.")
        return FunctionReward(function, key=key, timeout=timeout, timeout_key=limit)
    assert model is not None
    if signed and not is_cost_model(model):
        raise UserError(unsigned_cost(key_beside("", "cost."), model))
    with named_as(named("cost.model")):
        return ModelReward(model, batch_size, False, dtype, attn_implementation)
