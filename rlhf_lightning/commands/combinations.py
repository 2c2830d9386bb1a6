"""Settings of training that do nothing, or cannot work, beside another one. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlhf_lightning.errors import ENDLESS_SCHEDULE, UserError

KL_DEFAULTS = {"target": 6.0, "horizon": 10_000}  # what conf/algorithm/ppo.yaml gives every kind
ENDING_SCHEDULES = ("get_linear_schedule_with_warmup", "get_cosine_schedule_with_warmup")


def check_ppo_combinations(config: Mapping[str, Any]) -> None:
    """Raise UserError for what PPO, its KL penalty or its iterations would not read."""
    algorithm = config["algorithm"]
    _check_kl(algorithm.get("kl") or {})
    _check_no_validation(config["data"])
    _check_whole_rollouts(config["trainer"])
    target, ptx = algorithm.get("target_kl"), algorithm.get("ptx") or {}
    if target is not None and algorithm.get("ppo_epochs") == algorithm.get("num_minibatches") == 1:
        raise UserError(
            f"algorithm.target_kl: found {target}, but an iteration has one optimiser step and nothing to stop; set it "
            "to null, or raise algorithm.ppo_epochs or algorithm.num_minibatches"
        )
    if ptx.get("data") and not ptx.get("coef"):
        raise UserError(
            f"algorithm.ptx.data: found {ptx['data']}, but algorithm.ptx.coef=0 leaves it out; give a coefficient, or "
            "set it to null"
        )


def _check_kl(kl: Mapping[str, Any]) -> None:
    kind = kl.get("kind", "adaptive")
    if kind != "fixed" and kl.get("coef") == 0:
        raise UserError(
            f"algorithm.kl.coef: found 0 with algorithm.kl.kind={kind}, which multiplies it: it would stay 0; give a "
            "number above 0, or choose algorithm.kl.kind=fixed"
        )
    if kind == "fixed" and kl.get("coef") == 0:
        for name, unset in (("estimator", None), ("placement", "reward")):
            if kl.get(name, unset) != unset:
                raise UserError(
                    f"algorithm.kl.{name}: found {kl[name]}, but algorithm.kl.coef=0 leaves the penalty out; give a "
                    "coefficient, or leave it out"
                )
    read = {"adaptive": ("target", "horizon"), "multiplicative": ("target",)}.get(kind, ())
    for name, default in KL_DEFAULTS.items():
        if name in read and name in kl and kl[name] is None:
            raise UserError(f"algorithm.kl.{name}: found null, but algorithm.kl.kind={kind} needs it; give a number")
        if name not in read and kl.get(name) not in (None, default):
            raise UserError(
                f"algorithm.kl.{name}: found {kl[name]}, but algorithm.kl.kind={kind} has none; set it to null, or "
                "choose algorithm.kl.kind=adaptive"
            )


def _check_no_validation(data: Mapping[str, Any]) -> None:
    for name, none in (("val", "null"), ("val_fraction", "0")):
        if data.get(name):
            raise UserError(
                f"data.{name}: found {data[name]}, but PPO has no validation; set it to {none}, and compare policies "
                "on held-out prompts with rlhf-evaluate"
            )


def _check_whole_rollouts(trainer: Mapping[str, Any]) -> None:
    limit, overfit = trainer.get("limit_train_batches"), trainer.get("overfit_batches")
    for name, found in (
        ("limit_train_batches", None if limit == 1.0 and isinstance(limit, float) else limit),
        ("overfit_batches", overfit or None),
    ):
        if found is not None:
            raise UserError(
                f"trainer.{name}: found {found}, but PPO would leave out minibatches of every rollout; leave it at its "
                "default, and for a shorter run lower rollout.batch_size or trainer.max_epochs"
            )
    if trainer.get("val_check_interval") is not None:
        found = trainer["val_check_interval"]
        raise UserError(f"trainer.val_check_interval: found {found}, but PPO has no validation; leave it out")


def check_optimizer_combinations(optimizer: Mapping[str, Any]) -> None:
    """Raise UserError for what torch's optimisers refuse in a traceback, or do not read."""
    if optimizer.get("fused") and optimizer.get("foreach"):
        raise UserError("optimizer.foreach: found true with optimizer.fused=true; only one of the two, set it to null")
    if str(optimizer.get("_target_")) != "torch.optim.SGD" or optimizer.get("momentum"):
        if optimizer.get("nesterov") and optimizer.get("dampening"):
            raise UserError(
                "optimizer.dampening: Nesterov's momentum has none; set it to 0, or optimizer.nesterov=false"
            )
        return
    for name in ("nesterov", "dampening"):
        if optimizer.get(name):
            raise UserError(
                f"optimizer.{name}: found {str(optimizer[name]).lower()}, but optimizer.momentum=0; give a momentum, "
                "or leave it out"
            )


def check_dpo_combinations(algorithm: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that the chosen loss does not have."""
    smoothing, loss = algorithm.get("label_smoothing"), algorithm.get("loss_type", "sigmoid")
    if smoothing and loss != "sigmoid":
        raise UserError(
            f"algorithm.label_smoothing: found {smoothing}, but algorithm.loss_type={loss} has none; set it to 0, or "
            "choose algorithm.loss_type=sigmoid"
        )


def check_validation_interval(trainer: Mapping[str, Any]) -> None:
    """Raise UserError for a share of an epoch where validations are counted over epochs."""
    every = trainer.get("val_check_interval")
    over_epochs = trainer.get("check_val_every_n_epoch", 1) is None
    if over_epochs and not isinstance(every, int):
        raise UserError(
            f"trainer.val_check_interval: found {'null' if every is None else every}, but "
            "trainer.check_val_every_n_epoch=null counts batches over epochs; give a whole number of batches"
        )


def check_schedule(config: Mapping[str, Any]) -> None:
    """Raise UserError for a schedule that ends where the run ends, and a run without an end."""
    scheduler, trainer = config.get("scheduler") or {}, config["trainer"]
    if scheduler.get("last_epoch", -1) != -1:
        raise UserError(
            f"scheduler.last_epoch: found {scheduler['last_epoch']}; a resumed run knows where it is on its schedule: "
            "leave it out"
        )
    ends = str(scheduler.get("_target_", "")).rpartition(".")[2] in ENDING_SCHEDULES
    if ends and trainer.get("max_epochs") == -1 and trainer.get("max_steps", -1) in (-1, None):
        raise UserError(ENDLESS_SCHEDULE)
