"""An extension of rlhf-lightning from outside: one changed PPO, one reward, one new algorithm."""

from my_rlhf.priced_ppo import PricedPPOModule
from my_rlhf.rewards import short_and_polite
from my_rlhf.simpo import SimPOModule

__all__ = ["PricedPPOModule", "SimPOModule", "short_and_polite"]
