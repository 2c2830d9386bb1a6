"""Out-of-range numbers are refused when the algorithm is built, not only by the commands."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rlhf_lightning.algorithms import PPOModule, PretrainingMix, RewardShaping
from rlhf_lightning.errors import UserError


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("clip_range", 0.0, "a number in (0, 1)"),
        ("value_clip_range", -0.2, "a number > 0 or null"),
        ("target_kl", 0.0, "a number > 0 or null"),
        ("importance_cap", 0.0, "a number > 0 or null"),
        ("value_coef", -0.1, "a number >= 0"),
        ("entropy_coef", -0.01, "a number >= 0"),
        ("entropy_coef", math.nan, "a number in [0, 1e12]"),
        ("gamma", 1.5, "a number in [0, 1]"),
        ("lam", -0.5, "a number in [0, 1]"),
        ("ppo_epochs", 0, "a whole number >= 1"),
        ("num_minibatches", 0, "a whole number >= 1"),
        ("tokens_per_microbatch", 0, "a whole number >= 1 or null"),
    ],
)
def test_a_number_of_ppo_is_refused_by_its_key(setting: str, value: float, allowed: str) -> None:
    parts: dict[str, Any] = {"model": lambda: None, "tokenizer": None, "optimizer": None, "reward": None}
    with pytest.raises(UserError) as error:
        PPOModule(**parts, **{setting: value})
    assert str(error.value) == f"algorithm.{setting}: found {value}; must be {allowed}"


def test_a_number_of_a_part_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"shaping\.missing_eos_penalty: found -1\.0; must be a number >= 0$"):
        RewardShaping(missing_eos_penalty=-1.0)
    with pytest.raises(UserError, match=r"^algorithm\.shaping\.clip: found 0; must be a number > 0 or null$"):
        RewardShaping(clip=0)
    with pytest.raises(UserError, match=r"^algorithm\.ptx\.coef: found -1; must be a number >= 0$"):
        PretrainingMix(coef=-1, data="text.jsonl")


def test_weights_that_would_weigh_nothing_are_refused_in_python_as_by_the_commands() -> None:
    parts: dict[str, Any] = {"model": lambda: None, "tokenizer": None, "optimizer": None, "reward": None}
    with pytest.raises(UserError, match=r"^algorithm\.importance_cap: found 2\.0 with algorithm\.old_logprobs=engine"):
        PPOModule(**parts, importance_cap=2.0, old_logprobs="engine")
