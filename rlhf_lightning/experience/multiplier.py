"""The Lagrange multiplier of a limit on costs: how much a unit of cost weighs against a unit of reward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import NonNegative, Positive


class MultiplierController:
    """PID control of the multiplier (Stooke et al. 2020, algorithm 2).

        e = mean cost - limit;    I <- clip(I + ki e, 0, maximum)
        lambda = clip(I + kp e + kd max(mean cost - mean cost before, 0), 0, maximum)

    The integral finds the multiplier that holds the limit, and here it is already in the multiplier's unit, so that it
    can begin at `init`. The proportional term reacts at once and damps the oscillation of an integral alone; the
    derivative acts only while costs rise. The integral stays within the multiplier's range: a limit that cannot be met,
    or has long been met, does not have to be unlearned.

    Args:
        settings: the gains and the range.
        limit: the most cost per response.
    """

    def __init__(self, settings: CostMultiplier, limit: float) -> None:
        self.settings, self.limit = settings, limit
        self.value = self.integral = settings.init
        self.cost = math.nan  # of the previous iteration

    def update(self, cost: float) -> None:
        """Compute the multiplier after an iteration whose responses cost this much on average."""
        if not math.isfinite(cost):
            raise ValueError(f"`cost` is {cost}; expected a finite number")
        gains, error = self.settings, cost - self.limit
        rise = max(cost - self.cost, 0.0) if math.isfinite(self.cost) else 0.0
        self.integral = min(max(self.integral + gains.ki * error, 0.0), gains.maximum)
        self.value = min(max(self.integral + gains.kp * error + gains.kd * rise, 0.0), gains.maximum)
        self.cost = cost

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "integral": self.integral, "cost": self.cost}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value, self.integral, self.cost = state["value"], state["integral"], state["cost"]


@checked("algorithm.multiplier")
@dataclass(frozen=True)
class CostMultiplier:
    """How the weight of the cost follows the limit.

    Args:
        init: the multiplier of the first iteration, before its responses are counted.
        maximum: the largest multiplier; a limit that cannot be met ends there.
        kp: multiplier per unit of cost above the limit, in this iteration.
        ki: multiplier per unit of cost above the limit, summed over all iterations.
        kd: multiplier per unit of cost by which the mean has risen since the previous iteration.
    """

    init: NonNegative = 1.0
    maximum: Positive = 5.0
    kp: NonNegative = 1.0
    ki: NonNegative = 0.1
    kd: NonNegative = 0.0

    def __post_init__(self) -> None:
        if self.kp == self.ki == 0:
            raise UserError(
                "algorithm.multiplier.kp and algorithm.multiplier.ki: found 0 and 0, so that nothing holds "
                "algorithm.cost_limit; one of them must be above 0"
            )
        if self.init > self.maximum:
            raise UserError(
                f"algorithm.multiplier.init: found {self.init}; must be at most algorithm.multiplier.maximum "
                f"({self.maximum})"
            )
