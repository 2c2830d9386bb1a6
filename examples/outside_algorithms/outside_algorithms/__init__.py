"""Two algorithms that rlhf-lightning does not have, each in one file and one YAML."""

from outside_algorithms.dpo_positive import DPOPositiveModule
from outside_algorithms.moving_baseline import MovingBaselineModule

__all__ = ["DPOPositiveModule", "MovingBaselineModule"]
