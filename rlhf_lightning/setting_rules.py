"""What one setting asks of another: said once, for constructors and for the check of a config before torch is there.

Ranges of single settings stand in the annotations of the constructors (`value_checks`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import UserError

SMOOTHED = ("sigmoid", "robust", "exo_pair")  # losses of pairs that label smoothing is a part of
_SOURCES = ("function", "model", "components")


def check_smoothing(loss_type: str, label_smoothing: float) -> None:
    """Raise UserError for label smoothing of a loss that has none."""
    if label_smoothing and loss_type not in SMOOTHED:
        raise UserError(
            f"algorithm.label_smoothing: found {label_smoothing}; only algorithm.loss_type={' | '.join(SMOOTHED)} has "
            "it; set it to 0, or choose one of those"
        )


def check_pretraining(coef: float, data: str | None) -> None:
    """Raise UserError for a pretraining loss without text."""
    if coef and not data:
        raise UserError("algorithm.ptx.data: missing; give the pretraining text, or algorithm.ptx.coef=0")


def check_held_out(val: Any, val_fraction: float) -> None:
    """Raise UserError for held-out rows that are asked for twice."""
    if val is not None and val_fraction:
        raise UserError(
            f"data.val_fraction: found {val_fraction}; data.val gives the held-out rows; set one of the two "
            "(data.val_fraction=0)"
        )


def check_reward(reward: Mapping[str, Any], prefix: str = "reward.") -> None:
    """Raise UserError unless exactly one source of scores is given, with settings that are its own.

    Args:
        reward: the settings of `make_reward`.
        prefix: what the user writes before their names.
    """
    sources = [name for name in _SOURCES if reward.get(name)]
    choices = " | ".join(f"{prefix}{name}=..." for name in _SOURCES)
    if not sources:
        raise UserError(f"{prefix[:-1]}: no source of scores; give one of {choices}")
    if len(sources) > 1:
        given = " and ".join(f"{prefix}{name}" for name in sources)
        raise UserError(f"{given}: only one source of scores; set the others to null")
    for name, part in (reward.get("components") or {}).items():
        check_reward(part, f"{prefix}components.{name}.")
    if reward.get("standardize") and not reward.get("model"):
        raise UserError(
            f"{prefix}standardize: only a reward model carries the mean and std of its scores; set it with "
            f"{prefix}model, or in a part: {prefix}components.<name>.standardize"
        )
    defaults = {"dtype": "float32", "attn_implementation": None}
    loading = [name for name, default in defaults.items() if reward.get(name, default) != default]
    if loading and not reward.get("model"):
        raise UserError(
            f"{prefix}{loading[0]}: only a reward model is loaded with it; set it with {prefix}model, or in a part: "
            f"{prefix}components.<name>.{loading[0]}"
        )
    if reward.get("timeout") is not None and reward.get("model"):
        raise UserError(f"{prefix}timeout: found {reward['timeout']}; only functions have a limit; set it to null")
    function = reward.get("function")
    if function and "." not in function:
        raise UserError(f'{prefix}function: found "{function}"; allowed: a dotted path such as my_package.my_reward')
