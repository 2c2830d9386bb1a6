"""Constructors refuse what configs refuse, with the same words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from rlhf_lightning.algorithms import DPOModule, KLPenalty, PPOModule
from rlhf_lightning.config.validation import validate
from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked, wrong_value
from rlhf_lightning.value_types import Count, Positive

if TYPE_CHECKING:
    from torch import Tensor

PARTS: dict[str, Any] = {"model": lambda: None, "tokenizer": None, "optimizer": None}


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (DPOModule, {"beta": -1}),
        (DPOModule, {"label_smoothing": 0.5}),
        (DPOModule, {"loss_type": "sigmod"}),
        (DPOModule, {"loss_type": "dpo"}),
        (DPOModule, {"nll_coef": float("nan")}),
        (PPOModule, {"clip_range": 1.0}),
        (PPOModule, {"gamma": 1.1}),
        (PPOModule, {"num_minibatches": 2.0}),
        (PPOModule, {"whiten_advantages": 1}),
    ],
)
def test_a_call_in_python_gets_the_line_that_the_command_prints(make: Any, values: dict[str, Any]) -> None:
    reward = {"reward": None} if make is PPOModule else {}
    with pytest.raises(UserError) as called:
        make(**PARTS, **reward, **values)
    with pytest.raises(UserError) as checked_early:
        validate({"algorithm": {"_target_": f"rlhf_lightning.algorithms.{make.__name__}", **values}}, None)
    assert str(called.value) == str(checked_early.value)


def test_a_part_of_a_section_names_the_whole_key() -> None:
    with pytest.raises(UserError, match=r"^algorithm\.kl\.kind: k3 is an estimator: algorithm\.kl\.estimator=k3"):
        KLPenalty(kind="k3")  # type: ignore[arg-type]


@checked("mine")
def function(tensor: Tensor, width: Count, path: str | Path = "x", mode: Literal["a", "b"] = "a", *more: int) -> int:
    return width


@checked("mine")
@dataclass
class Record:
    width: Positive = 1.0


def test_what_is_not_a_plain_value_is_not_checked() -> None:
    assert function(None, 2, Path("y")) == 2  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"^mine\.width: found 0; must be a whole number >= 1$"):
        function(None, 0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r'^mine\.mode: found "c"; must be a \| b'):
        function(None, 1, mode="c")  # type: ignore[arg-type]


def test_a_missing_argument_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="width"):
        function(None)  # type: ignore[call-arg,arg-type]


def test_a_checked_dataclass_is_still_one() -> None:
    assert Record(2) == Record(width=2.0)
    with pytest.raises(UserError, match=r"^mine\.width: found 0; must be a number > 0$"):
        Record(0)


def test_a_bound_that_one_number_of_a_list_exceeds_is_named() -> None:
    assert wrong_value("weights", [1.0, 1e308], list[Positive]).endswith("must be a list of: a number in (0, 1e12]")
    assert wrong_value("weights", [1.0, -1.0], list[Positive]).endswith("must be a list of: a number > 0")
