"""The coefficient of PPO's KL penalty: fixed, or adjusted so that the policy keeps a target distance.

Units: KL here is per response, the sum over its tokens, in nats; horizons are in episodes (responses).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from rlhf_lightning.errors import UserError
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import Count, NonNegative, Positive

FARTHEST = 1e6  # an adjusted coefficient stays within this factor of its initial value, so that it can come back


class KLController(Protocol):
    """`value` is the current coefficient; `update` receives the mean KL per response of `n_episodes` responses."""

    value: float

    def update(self, kl: float, n_episodes: int) -> None: ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class FixedKLController:
    """A constant coefficient."""

    def __init__(self, coef: float) -> None:
        self.value = coef

    def update(self, kl: float, n_episodes: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class MovingKLController(FixedKLController):
    """A coefficient that is multiplied by a factor after every iteration, and stays above 0.

    Args:
        init_coef: the initial coefficient, > 0, since a factor cannot change 0.
        target: KL per response to hold, in nats, > 0.

    Raises:
        UserError: a value outside its range.
    """

    def __init__(self, init_coef: float, target: float) -> None:
        super().__init__(init_coef)
        _check_positive(
            "algorithm.kl.coef",
            init_coef,
            "a coefficient that is only ever multiplied stays 0; or choose algorithm.kl.kind=fixed",
        )
        _check_positive("algorithm.kl.target", target)
        self.target = target
        self._range = (init_coef / FARTHEST, init_coef * FARTHEST)

    def update(self, kl: float, n_episodes: int) -> None:
        """Compute the next coefficient, kept within its range.

        Raises:
            UserError: `kl` is NaN, which says nothing. The coefficient stays as it is.
        """
        if math.isnan(kl):
            raise UserError(
                "objective/kl is nan: the log-probabilities of the policy or the reference are not finite; resume from "
                "the last checkpoint with a lower optimizer.lr or trainer.precision=32-true"
            )
        if n_episodes < 0:
            raise ValueError(f"`n_episodes` is {n_episodes}; expected 0 or more")
        lowest, highest = self._range
        self.value = min(max(self.moved(kl, n_episodes), lowest), highest)

    def moved(self, kl: float, n_episodes: int) -> float:
        """Return the next coefficient: the current one times a factor above 0."""
        raise NotImplementedError


class AdaptiveKLController(MovingKLController):
    """Proportional control in log space (Ziegler et al. 2019, equation 4).

        e = clip((KL - target) / target, -0.2, 0.2);    coef <- coef (1 + e min(n_episodes / horizon, 1))

    The minimum is not in the paper, where iterations are far shorter than the horizon. Without it, an iteration with
    more episodes than five horizons could make the coefficient negative, which would reward KL.

    Args:
        init_coef: the initial coefficient, > 0.
        target: KL per response to hold, in nats (6 in the paper).
        horizon: in episodes (10,000 in the paper). The relative step of an update is at most 0.2 n_episodes / horizon,
            and at most 0.2 however short the horizon.
    """

    def __init__(self, init_coef: float, target: float, horizon: int) -> None:
        super().__init__(init_coef, target)
        _check_positive("algorithm.kl.horizon", horizon)
        self.horizon = horizon

    def moved(self, kl: float, n_episodes: int) -> float:
        """Return a higher coefficient if the policy is too far from the reference, a lower one if it is too near."""
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        return self.value * (1 + error * min(n_episodes, self.horizon) / self.horizon)


class MultiplicativeKLController(MovingKLController):
    """Multiplies or divides by `factor` outside a band around the target (Schulman et al. 2017, section 4).

    KL > factor * target: coef <- coef * factor;    KL < target / factor: coef <- coef / factor;    else unchanged.
    """

    def __init__(self, init_coef: float, target: float, factor: float = 1.5) -> None:
        super().__init__(init_coef, target)
        if not 1 < factor < math.inf:
            raise UserError(f"factor: found {factor}; must be above 1")
        self.factor = factor

    def moved(self, kl: float, n_episodes: int) -> float:
        """Return the coefficient after one step, whatever the number of episodes."""
        if kl > self.target * self.factor:
            return self.value * self.factor
        return self.value / self.factor if kl < self.target / self.factor else self.value


class PIDController(MovingKLController):
    """Proportional, integral and derivative control of the coefficient's logarithm (Stooke et al. 2020, section 5).

        e = clip((KL - target) / target, -1, 1);    log coef = log init_coef + kp e + ki sum(e) + kd (e - e_before)

    The adaptive controller keeps moving the coefficient until the error is gone, and by then the policy has overshot;
    here the proportional term reacts immediately and the integral finds the coefficient that holds the target. On the
    logarithm a step is a factor, so the coefficient is above 0 by construction. The integral stops when the coefficient
    reaches the end of its range. The default gains suit a policy that takes several iterations to follow the
    coefficient, as in PPO; one that follows immediately needs a kp below 1.

    Args:
        init_coef: the initial coefficient, > 0.
        target: KL per response to hold, in nats.
        kp: change of log coef per relative error of this iteration.
        ki: change of log coef per summed error of all iterations.
        kd: change of log coef per change of the error since the previous iteration.
    """

    def __init__(self, init_coef: float, target: float, kp: float = 2.0, ki: float = 0.3, kd: float = 0.0) -> None:
        super().__init__(init_coef, target)
        for name, gain in (("kp", kp), ("ki", ki), ("kd", kd)):
            if not 0 <= gain < math.inf:
                raise UserError(f"algorithm.kl.{name}: found {gain}; must be at least 0 and finite")
        if kp == ki == 0:
            raise UserError("algorithm.kl.kp and algorithm.kl.ki: found 0 and 0; one of them must be above 0")
        self.init_coef, self.kp, self.ki, self.kd = init_coef, kp, ki, kd
        self.integral = self.error = 0.0

    def moved(self, kl: float, n_episodes: int) -> float:
        """Return the coefficient for the errors so far; one step per iteration, whatever its number of episodes."""
        error = min(max(kl / self.target - 1, -1.0), 1.0)
        integral = self.integral + error
        exponent = self.kp * error + self.ki * integral + self.kd * (error - self.error)
        if abs(self.ki * integral) <= math.log(FARTHEST):
            self.integral = integral
        self.error = error
        return self.init_coef * math.exp(min(max(exponent, -math.log(FARTHEST)), math.log(FARTHEST)))

    def state_dict(self) -> dict[str, float]:
        return {**super().state_dict(), "integral": self.integral, "error": self.error}

    def load_state_dict(self, state: dict[str, float]) -> None:
        super().load_state_dict(state)
        self.integral, self.error = state["integral"], state["error"]


def _check_positive(key: str, value: float, why: str = "") -> None:
    if not 0 < value < math.inf:
        raise UserError(f"{key}: found {value}; must be above 0{why and ': ' + why}")


@checked("algorithm.kl")
@dataclass(frozen=True)
class KLPenalty:
    """How PPO is kept close to the reference.

    Args:
        kind: `adaptive`, `multiplicative`, `pid` or `fixed` coefficient.
        coef: the coefficient, or its initial value; above 0 unless it is fixed.
        target: KL per response to hold, in nats; null for `fixed`, which has none.
        horizon: horizon of the adaptive controller, in episodes; null for the others.
        kp: of the PID controller: gain of this iteration's error, relative to the target.
        ki: of the PID controller: gain of the sum of all errors.
        kd: of the PID controller: gain of a change since the previous iteration.
        estimator: k1, k2, k3 or abs; null: k1 in the reward, k2 in the loss.
        placement: `reward` subtracts the penalty from every token's reward; `loss` adds it to the loss. In the loss, k2
            has the gradient of KL(policy || reference) on fresh samples, exactly for one token; over several tokens it
            treats the states as fixed. k1's gradient is zero on average.
    """

    kind: Literal["adaptive", "multiplicative", "pid", "fixed"] = "adaptive"
    coef: NonNegative = 0.1
    target: Positive | None = 6.0
    horizon: Count | None = 10_000
    estimator: Literal["k1", "k2", "k3", "abs"] | None = None
    placement: Literal["reward", "loss"] = "reward"
    kp: NonNegative = 2.0
    ki: NonNegative = 0.3
    kd: NonNegative = 0.0

    def __post_init__(self) -> None:
        if self.placement == "loss" and self.estimator in ("k1", "abs"):
            raise UserError(
                f"algorithm.kl.estimator: found {self.estimator}, whose gradient in the loss does not pull towards the "
                "reference; allowed with algorithm.kl.placement=loss: k2 | k3 | null"
            )
        self.controller()  # raises for values that its kind does not accept

    def controller(self) -> KLController:
        """Return a new controller of this kind."""
        if self.kind == "fixed":
            return FixedKLController(self.coef)
        if self.target is None:
            raise UserError(
                f"algorithm.kl.target: found null, but algorithm.kl.kind={self.kind} needs it; give a number"
            )
        if self.kind == "multiplicative":
            return MultiplicativeKLController(self.coef, self.target)
        if self.kind == "pid":
            return PIDController(self.coef, self.target, self.kp, self.ki, self.kd)
        if self.horizon is None:
            raise UserError("algorithm.kl.horizon: found null, but algorithm.kl.kind=adaptive needs it; give a number")
        return AdaptiveKLController(self.coef, self.target, self.horizon)

    @property
    def kl_kind(self) -> str:
        """Return the estimator in use."""
        return self.estimator or ("k1" if self.placement == "reward" else "k2")
