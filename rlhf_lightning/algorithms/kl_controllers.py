"""The coefficient of PPO's KL penalty: fixed, or moved so that the policy keeps a target distance.

The unit matters: KL here is per response, the sum over its tokens, in nats; horizons are in episodes (responses).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from rlhf_lightning.errors import UserError


class KLController(Protocol):
    """`value` is the coefficient now; `update` sees the mean KL per response of `n_episodes` responses."""

    value: float

    def update(self, kl: float, n_episodes: int) -> None: ...

    def state_dict(self) -> dict[str, float]: ...

    def load_state_dict(self, state: dict[str, float]) -> None: ...


class FixedKLController:
    """A constant coefficient."""

    def __init__(self, coef: float) -> None:
        self.value = coef

    def update(self, kl: float, n_episodes: int) -> None:
        """Nothing changes."""

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.value = state["value"]


class AdaptiveKLController(FixedKLController):
    """Proportional control in log space (Ziegler et al. 2019, equation 4).

        e = clip((KL - target) / target, -0.2, 0.2);    coef <- coef (1 + e n_episodes / horizon)

    Args:
        init_coef: the first coefficient, > 0.
        target: KL per response to hold, in nats (6 in the paper).
        horizon: in episodes (10,000 in the paper); n_episodes / horizon is the largest relative step over 0.2.
    """

    def __init__(self, init_coef: float, target: float, horizon: int) -> None:
        super().__init__(init_coef)
        self.target, self.horizon = target, horizon

    def update(self, kl: float, n_episodes: int) -> None:
        """Raise the coefficient when the policy is too far, lower it when it is too near."""
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        self.value *= 1 + error * n_episodes / self.horizon


class MultiplicativeKLController(FixedKLController):
    """Times or over `factor` beyond a band around the target (Schulman et al. 2017, section 4).

    KL > factor * target: coef <- coef * factor;    KL < target / factor: coef <- coef / factor;    else unchanged.
    """

    def __init__(self, init_coef: float, target: float, factor: float = 1.5) -> None:
        super().__init__(init_coef)
        self.target, self.factor = target, factor

    def update(self, kl: float, n_episodes: int) -> None:
        """One step, whatever the number of episodes."""
        if kl > self.target * self.factor:
            self.value *= self.factor
        elif kl < self.target / self.factor:
            self.value /= self.factor


@dataclass(frozen=True)
class KLPenalty:
    """How PPO is held to the reference.

    Args:
        kind: `adaptive`, `multiplicative` or `fixed` coefficient.
        coef: the coefficient, or the first one.
        target: KL per response to hold, in nats (not used by `fixed`).
        horizon: of the adaptive controller, in episodes.
        estimator: of the penalty: k1, k2, k3 or abs; null: k1 in the reward, k2 in the loss.
        placement: `reward` subtracts it from every token's reward; `loss` adds it to the loss. In the loss k2 has the
            gradient of KL(policy || reference) on fresh samples, exact for one token; over several it holds the
            states fixed. k1's gradient is zero on average.
    """

    kind: Literal["adaptive", "multiplicative", "fixed"] = "adaptive"
    coef: float = 0.1
    target: float = 6.0
    horizon: int = 10_000
    estimator: Literal["k1", "k2", "k3", "abs"] | None = None
    placement: Literal["reward", "loss"] = "reward"

    def __post_init__(self) -> None:
        if self.placement == "loss" and self.estimator in ("k1", "abs"):
            raise UserError(
                f"algorithm.kl.estimator: {self.estimator} in the loss does not pull towards the reference "
                "(k1's gradient is zero on average); use k2 or k3 with algorithm.kl.placement=loss"
            )

    def controller(self) -> KLController:
        """A fresh controller of this kind."""
        if self.kind == "fixed":
            return FixedKLController(self.coef)
        if self.kind == "adaptive":
            return AdaptiveKLController(self.coef, self.target, self.horizon)
        if self.kind == "multiplicative":
            return MultiplicativeKLController(self.coef, self.target)
        raise UserError(f"algorithm.kl.kind: {self.kind!r} is not one of adaptive, multiplicative, fixed")

    @property
    def kl_kind(self) -> str:
        """The estimator in use."""
        return self.estimator or ("k1" if self.placement == "reward" else "k2")
