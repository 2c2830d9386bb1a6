"""The reward protocol, Python functions as rewards, and the check every reward's answer goes through."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rlhf_lightning.errors import UserError


class RewardFunction(Protocol):
    """Scores responses: one finite number each, higher is better.

    `columns` carries the data row's other columns (each a list), `messages` for conversational prompts, and `ended`:
    whether each response produced an EOS.
    """

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]: ...


def check_scores(scores: Sequence[Any], n: int, name: str) -> list[float]:
    """The scores as floats, if there are `n` of them and all are finite numbers.

    Raises:
        UserError: wrong length, a value that is no number, or NaN or infinity. Nothing is ever broadcast.
    """
    if not hasattr(scores, "__len__"):
        raise UserError(f"reward {name}: returned {type(scores).__name__}, expected a list of {n} numbers")
    if len(scores) != n:
        raise UserError(f"reward {name}: returned {len(scores)} scores for {n} responses")
    out = []
    for i, score in enumerate(scores):
        try:
            value = float(score)
        except (TypeError, ValueError):
            raise UserError(f"reward {name}: score {i} is {score!r}, expected a number") from None
        if not math.isfinite(value):
            raise UserError(f"reward {name}: score {i} is {value}, expected a finite number")
        out.append(value)
    return out


class FunctionReward:
    """A Python function by its dotted path, `my_pkg.my_fn`; the current folder is on the path.

    Raises:
        UserError: there is no such module or function.
    """

    def __init__(self, function: str) -> None:
        self.name = function
        module_name, _, attribute = function.rpartition(".")
        if not module_name:
            raise UserError(f"reward.function: {function!r} is not a dotted path such as my_pkg.my_fn")
        if (here := str(Path.cwd())) not in sys.path:
            sys.path.insert(0, here)
        try:
            self.function = getattr(importlib.import_module(module_name), attribute)
        except ImportError as error:
            raise UserError(f"reward.function: cannot import {module_name}: {error}") from error
        except AttributeError:
            raise UserError(f"reward.function: {module_name} has no {attribute!r}") from None

    def __call__(self, prompts: list[str], responses: list[str], **columns: Any) -> list[float]:
        return check_scores(self.function(prompts, responses, **columns), len(responses), self.name)
