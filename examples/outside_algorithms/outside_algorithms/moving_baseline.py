"""REINFORCE with a moving baseline (Williams 1992, section 3): no critic, no groups, one number that a run carries on.

advantage of token t = rewards from t to the end - b;    b <- decay b + (1 - decay) mean reward of the responses
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from rlhf_lightning.algorithms import OnPolicyModule
from rlhf_lightning.experience.credit import Credit
from rlhf_lightning.experience.part_gradients import Loss
from rlhf_lightning.functional import policy_gradient_loss
from rlhf_lightning.models.roles import ActorCriticOutput
from rlhf_lightning.rollout import Rollout
from rlhf_lightning.value_checks import checked
from rlhf_lightning.value_types import BelowOne


class Baseline:
    """A mean that forgets; its first value is the first that it sees."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.value: float | None = None

    def update(self, mean: float) -> None:
        """Move towards `mean`."""
        self.value = mean if self.value is None else self.decay * self.value + (1 - self.decay) * mean

    def state_dict(self) -> dict[str, float | None]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        self.value = state["value"]


class MovingBaselineModule(OnPolicyModule):
    """The policy gradient of whole rewards less the mean reward of earlier iterations.

    Args:
        decay: how much of the baseline stays from one iteration to the next.
    """

    title: ClassVar[str] = "REINFORCE with a moving baseline"
    logs: ClassVar[tuple[str, ...]] = ("policy/baseline",)
    resumes: ClassVar[tuple[str, ...]] = ("baseline",)

    @checked("algorithm")
    def __init__(self, *args: Any, decay: BelowOne = 0.9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.baseline = Baseline(decay)

    def advantages(self, rollout: Rollout) -> Credit:
        """Return the rest of each response's reward after each token, minus the baseline, [B, T]."""
        mean = float(self.gather(rollout.rewards.sum(dim=1)).mean())
        baseline = mean if self.baseline.value is None else self.baseline.value
        self.record("policy/baseline", baseline)
        self.baseline.update(mean)
        to_come = rollout.rewards.flip(1).cumsum(1).flip(1)
        return Credit((to_come - baseline) * rollout.mask)

    def objective(self, out: ActorCriticOutput, batch: Rollout) -> Loss:
        """The policy gradient's loss."""
        loss, _ = policy_gradient_loss(out.logprobs, batch.advantages, batch.mask, denominator=batch.denominator)
        drift: Tensor = ((batch.logprobs - out.logprobs.detach()) * batch.mask).sum() / batch.mask.sum()
        return loss, {"policy/loss": loss * batch.share, "policy/approx_kl": drift}
