"""(a) One piece of PPO replaced by subclassing: every token costs something."""

from typing import Any

from torch import Tensor

from rlhf_lightning.algorithms import PPOModule
from rlhf_lightning.rollout import Rollout


class PricedPPOModule(PPOModule):
    """PPO whose token rewards pay a price for every token.

    Args:
        token_price: taken off the reward of each valid token, in units of the score.
    """

    def __init__(self, *args: Any, token_price: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.token_price = token_price

    def token_rewards(self, rollout: Rollout, kl: Tensor) -> Tensor:
        """The usual rewards [B, T] less the price, on valid tokens only."""
        return super().token_rewards(rollout, kl) - self.token_price * rollout.mask
