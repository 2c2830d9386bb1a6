"""An extension of rlhf-lightning from outside: one changed PPO and one reward."""

from my_rlhf.priced_ppo import PricedPPOModule
from my_rlhf.rewards import short_and_polite

__all__ = ["PricedPPOModule", "short_and_polite"]
