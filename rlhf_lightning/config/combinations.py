"""Settings that need another setting, without which a run cannot work. Needs no torch.

Settings that have no effect next to others are in `effects`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ENDLESS_SCHEDULE, GROUP_OF_ONE, UserError
from rlhf_lightning.setting_rules import check_accuracy, check_samples_to_choose
from rlhf_lightning.source.constructors import setting
from rlhf_lightning.source.declarations import declaration

ENDING_SCHEDULES = ("get_linear_schedule_with_warmup", "get_cosine_schedule_with_warmup")


def check_groups(config: Mapping[str, Any]) -> None:
    """Raise UserError for an algorithm that compares the responses to a prompt where there is nothing to compare."""
    estimator, rollout = config["algorithm"].get("estimator"), config.get("rollout") or {}
    if estimator in ("group_mean", "leave_one_out") and rollout.get("samples_per_prompt", 1) == 1:
        raise UserError(GROUP_OF_ONE.format(estimator=estimator))
    algorithm, reward = config["algorithm"], config.get("reward") or {}
    samples = rollout.get("samples_per_prompt", 1)
    check_samples_to_choose(declaration(config).name, declaration(config).trained_per_prompt, samples)
    if declaration(config).ours and (accuracy := setting(algorithm, "accuracy")):
        made = str(reward.get("_target_", "")).endswith(".make_reward")
        parts = list(reward.get("components") or {}) if made else None
        check_accuracy(accuracy, samples, parts, bool(reward.get("normalize_parts")))


def check_validation_interval(trainer: Mapping[str, Any]) -> None:
    """Raise UserError for an interval given as a share of an epoch if validations are counted across epochs."""
    every = trainer.get("val_check_interval")
    over_epochs = trainer.get("check_val_every_n_epoch", 1) is None
    if over_epochs and not isinstance(every, int):
        raise UserError(
            f"trainer.val_check_interval: found {'null' if every is None else every}, but "
            "trainer.check_val_every_n_epoch=null counts batches over epochs; give a whole number of batches"
        )


def check_schedule(config: Mapping[str, Any]) -> None:
    """Raise UserError for a schedule that follows a metric, or that ends with the run if the run has no end."""
    scheduler, trainer = config.get("scheduler") or {}, config["trainer"]
    target = str(scheduler.get("_target_", ""))
    if target.endswith(".ReduceLROnPlateau"):
        raise UserError(
            f"scheduler._target_: found {target}, which follows a metric; must be a schedule over the steps, such as "
            "scheduler=cosine"
        )
    ends = target.rpartition(".")[2] in ENDING_SCHEDULES
    if ends and trainer.get("max_epochs") == -1 and trainer.get("max_steps", -1) in (-1, None):
        raise UserError(ENDLESS_SCHEDULE)
