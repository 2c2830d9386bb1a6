"""How much memory a run needs, from its config and its model's configuration alone."""

from rlhf_lightning.planning.advice import Change, advise
from rlhf_lightning.planning.networks import Network
from rlhf_lightning.planning.passes import Loss, Rows
from rlhf_lightning.planning.plan import Phase, Plan, Role, make_plan
from rlhf_lightning.planning.run import Devices, Optimizer, RewardModel, Rollout, Run
from rlhf_lightning.planning.table import advice_table, plan_table, room

__all__ = [
    "Change",
    "Devices",
    "Loss",
    "Network",
    "Optimizer",
    "Phase",
    "Plan",
    "RewardModel",
    "Role",
    "Rollout",
    "Rows",
    "Run",
    "advice_table",
    "advise",
    "make_plan",
    "plan_table",
    "room",
]
