"""Evaluation: what a policy became, against where it started."""

from rlhf_lightning.evaluation.divergence import response_kl
from rlhf_lightning.evaluation.diversity import distinct_n
from rlhf_lightning.evaluation.label_noise import bayes_accuracy
from rlhf_lightning.evaluation.policies import evaluate_policies
from rlhf_lightning.evaluation.refusals import RefusalDetector, is_refusal, refusal_rates
from rlhf_lightning.evaluation.report import write_report
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.table import terminal_table
from rlhf_lightning.evaluation.win_rate import WinRate, wilson_interval, win_rate

__all__ = [
    "Evaluation",
    "RefusalDetector",
    "WinRate",
    "bayes_accuracy",
    "distinct_n",
    "evaluate_policies",
    "is_refusal",
    "refusal_rates",
    "response_kl",
    "terminal_table",
    "wilson_interval",
    "win_rate",
    "write_report",
]
