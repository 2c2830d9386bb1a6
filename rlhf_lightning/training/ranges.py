"""The ranges of an algorithm's numbers, for those who build it in Python; the commands have them in their schema."""

from __future__ import annotations

import math

from rlhf_lightning.errors import UserError

_SIGNS = {"> 0": lambda x: x > 0, ">= 0": lambda x: x >= 0, ">= 1": lambda x: x >= 1, "in [0, 1]": lambda x: x <= 1}


def check_range(allowed: str, **values: float | None) -> None:
    """Raise UserError for the first value outside a range; None is a setting that is off.

    Args:
        allowed: `> 0`, `>= 0`, `>= 1` or `in [0, 1]`.
        values: by the key of `algorithm`, with `__` for a dot.
    """
    for name, value in values.items():
        if value is not None and not (math.isfinite(value) and value >= 0 and _SIGNS[allowed](value)):
            raise UserError(f"algorithm.{name.replace('__', '.')}: found {value}; must be {allowed}")
