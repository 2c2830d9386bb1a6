"""Evaluation: how a trained policy compares with where it started."""

from rlhf_lightning.evaluation.divergence import response_kl
from rlhf_lightning.evaluation.diversity import distinct_n, repetition, self_bleu
from rlhf_lightning.evaluation.judged import Judge, in_both_orders
from rlhf_lightning.evaluation.label_noise import bayes_accuracy
from rlhf_lightning.evaluation.length_control import length_controlled_win_rate
from rlhf_lightning.evaluation.policies import evaluate_policies
from rlhf_lightning.evaluation.refusals import (
    DetectorError,
    RefusalDetector,
    is_refusal,
    read_detector_error,
    refusal_rates,
)
from rlhf_lightning.evaluation.report import write_report
from rlhf_lightning.evaluation.results import Evaluation
from rlhf_lightning.evaluation.reward_accuracy import flat_accuracies, read_pairs, reward_accuracies
from rlhf_lightning.evaluation.table import accuracy_table, terminal_table
from rlhf_lightning.evaluation.win_rate import WinRate, wilson_interval, win_rate

__all__ = [
    "DetectorError",
    "Evaluation",
    "Judge",
    "RefusalDetector",
    "WinRate",
    "accuracy_table",
    "bayes_accuracy",
    "distinct_n",
    "evaluate_policies",
    "flat_accuracies",
    "in_both_orders",
    "is_refusal",
    "length_controlled_win_rate",
    "read_detector_error",
    "read_pairs",
    "refusal_rates",
    "repetition",
    "response_kl",
    "reward_accuracies",
    "self_bleu",
    "terminal_table",
    "wilson_interval",
    "win_rate",
    "write_report",
]
