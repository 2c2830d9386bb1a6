"""Training settings that would have no effect next to another one are refused in one line, before torch is imported."""

from __future__ import annotations

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import check
from rlhf_lightning.errors import UserError

LINEAR = "scheduler: it needs to know where the run ends, and trainer.max_epochs=-1 has no end"


def complaint(overrides: str) -> str:
    with pytest.raises(UserError) as error:
        check(compose_config("train", overrides.split()))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("algorithm.kl.coef=0", "algorithm.kl.coef: found 0; must be above 0: a coefficient that is only"),
        ("algorithm.kl.coef=0.0 algorithm.kl.kind=multiplicative", "algorithm.kl.coef: found 0.0; must be above 0"),
        ("algorithm.kl.kind=fixed algorithm.kl.target=4", "algorithm.kl.target: found 4; algorithm.kl.kind=fixed has"),
        (
            "algorithm.kl.kind=multiplicative algorithm.kl.horizon=77",
            "algorithm.kl.horizon: found 77; only algorithm.kl.kind=adaptive has one",
        ),
        ("algorithm.kl.target=null", "algorithm.kl.target: found null, but algorithm.kl.kind=pid needs it"),
        ("algorithm.kl.kind=adaptive algorithm.kl.horizon=null", "algorithm.kl.horizon: found null"),
        (
            "algorithm.kl.kind=fixed algorithm.kl.coef=0 algorithm.kl.placement=loss",
            "algorithm.kl.placement: found loss; with algorithm.kl.kind=fixed and coef=0",
        ),
        (
            "algorithm.kl.kind=fixed algorithm.kl.coef=0 algorithm.kl.estimator=k3",
            "algorithm.kl.estimator: found k3; with",
        ),
        ("trainer.limit_train_batches=3", "trainer.limit_train_batches: found 3; PPOModule would leave out"),
        ("trainer.limit_train_batches=1", "trainer.limit_train_batches: found 1; PPOModule would leave out"),
        ("trainer.limit_train_batches=0.5", "trainer.limit_train_batches: found 0.5; PPOModule"),
        ("trainer.overfit_batches=1", "trainer.overfit_batches: found 1; "),
        ("trainer.val_check_interval=0.5", "trainer.val_check_interval: found 0.5; PPOModule is validated at"),
        (
            "algorithm.ppo_epochs=1 algorithm.num_minibatches=1 algorithm.target_kl=0.3",
            "algorithm.target_kl: found 0.3; an iteration",
        ),
        ("algorithm.ptx.data=text.jsonl", "algorithm.ptx.data: found text.jsonl; algorithm.ptx.coef=0"),
        ("trainer.max_epochs=-1", LINEAR),
        ("trainer.max_epochs=-1 scheduler=cosine trainer.max_time=00:01:00:00", LINEAR),
    ],
)
def test_a_setting_of_ppo_that_would_do_nothing_is_refused(overrides: str, expected: str) -> None:
    assert expected in complaint(f"experiment=ppo_demo {overrides}")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("optimizer=sgd ++optimizer.momentum=0 ++optimizer.nesterov=true", "optimizer.nesterov: found true; there is"),
        ("optimizer=sgd ++optimizer.momentum=0 ++optimizer.dampening=0.1", "optimizer.dampening: found 0.1; there is"),
        (
            "optimizer=sgd ++optimizer.momentum=0.9 ++optimizer.nesterov=true ++optimizer.dampening=0.1",
            "optimizer.dampening: found 0.1; Nesterov momentum has none",
        ),
        ("++optimizer.fused=true ++optimizer.foreach=true", "optimizer.foreach: found true; a fused optimiser cannot"),
        ("++scheduler.last_epoch=5", "scheduler.last_epoch: found 5; a resumed run knows"),
    ],
)
def test_what_an_optimiser_would_not_read_is_refused(overrides: str, expected: str) -> None:
    assert expected in complaint(f"experiment=sft_demo {overrides}")


@pytest.mark.parametrize(("interval", "shown"), [("null", "null"), ("0.5", "0.5")])
def test_validations_counted_over_epochs_are_counted_in_batches(interval: str, shown: str) -> None:
    trainer = f"trainer.check_val_every_n_epoch=null trainer.val_check_interval={interval}"
    assert f"trainer.val_check_interval: found {shown}, but" in complaint(f"experiment=sft_demo {trainer}")


@pytest.mark.parametrize("loss_type", ["hinge", "ipo"])
def test_label_smoothing_is_refused_by_losses_without_it(loss_type: str) -> None:
    found = complaint(f"experiment=dpo_demo algorithm.loss_type={loss_type} algorithm.label_smoothing=0.1")
    assert found.startswith(
        "algorithm.label_smoothing: found 0.1; only algorithm.loss_type=sigmoid | robust | exo_pair has it"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        "experiment=ppo_demo algorithm.kl.kind=fixed algorithm.kl.target=null algorithm.kl.horizon=null",
        # target and horizon, target_kl: from the experiment's file, not the user's
        "experiment=ppo_demo algorithm.kl.kind=fixed",
        "experiment=ppo_demo algorithm.kl.kind=multiplicative",
        "experiment=ppo_demo algorithm.ppo_epochs=1 algorithm.num_minibatches=1",
        "experiment=ppo algorithm.kl.kind=fixed algorithm.kl.coef=0 model.path=a data.train=b reward.model=c",
        "experiment=ppo_demo trainer.limit_train_batches=1.0 data.val_fraction=0",
        "experiment=ppo_demo trainer.max_epochs=-1 trainer.max_steps=100",
        "experiment=ppo_demo trainer.max_epochs=-1 scheduler=constant",
        "experiment=dpo_demo algorithm.label_smoothing=0.1",
        "experiment=sft_demo optimizer=sgd ++optimizer.momentum=0.9 ++optimizer.nesterov=true",
        "experiment=sft_demo trainer.max_epochs=-1 trainer.max_steps=100 trainer.limit_train_batches=3",
        "experiment=sft_demo trainer.check_val_every_n_epoch=null trainer.val_check_interval=50",
    ],
)
def test_what_has_an_effect_is_taken(overrides: str) -> None:
    check(compose_config("train", overrides.split()))
