"""Checks of best-of-n sampling, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.config.source_lookup import check_function
from rlhf_lightning.errors import UserError
from rlhf_lightning.setting_rules import check_reward

_UNSET = {"function": None, "model": None, "dtype": "float32", "attn_implementation": None, "timeout": None}


def check_best_of(config: Mapping[str, Any]) -> str | None:
    """Check `best_of`, the `reward` that chooses, and the temperature; return the reward model's path, if it is one.

    Raises:
        UserError: one of them is missing, or has no effect.
    """
    n, reward = config.get("best_of"), config.get("reward") or {}
    given = [key for key, default in _UNSET.items() if reward.get(key, default) != default]
    if n is None:
        if given:
            raise UserError(
                f"reward.{given[0]}: found {reward[given[0]]}, and nothing is chosen by it; give best_of=<samples per "
                "answer>, or leave it out"
            )
        return None
    if not (reward.get("function") or reward.get("model")):
        raise UserError(
            f"best_of: found {n}, and no reward to choose by; give reward.model=<a reward model> or "
            "reward.function=my_package.my_reward"
        )
    if config.get("temperature") == 0:
        raise UserError("best_of: with temperature=0 all answers to a prompt are the same; raise the temperature")
    check_reward(reward)
    check_function("reward.function", reward.get("function"))
    return reward.get("model")
