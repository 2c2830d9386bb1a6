from __future__ import annotations

import logging

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.callbacks import Guardrails
from rlhf_lightning.errors import UserError
from rlhf_lightning.experience.kl_control import KLPenalty


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tiny_module, make_trainer, tmp_path, bad):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, filename="x")
    trainer = make_trainer(callbacks=[Guardrails(), checkpoint], enable_checkpointing=True)
    with pytest.raises(
        UserError, match=rf"train/loss is {bad} at step 6 \(epoch 1\).*ckpt=last and a lower optimizer\.lr"
    ):
        trainer.fit(tiny_module(scales={6: bad}))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert saved["global_step"] == 6
    assert all(torch.isfinite(value).all() for value in saved["state_dict"].values())


def test_without_guardrails_the_damage_is_saved(tiny_module, make_trainer, tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True, filename="x")
    make_trainer(callbacks=[checkpoint], enable_checkpointing=True).fit(tiny_module(scales={6: float("nan")}))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=False)
    assert torch.isnan(saved["state_dict"]["linear.weight"]).all()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tiny_module, make_trainer):
    module = tiny_module()
    before = module.linear.weight.detach().clone()
    module.linear.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(
        UserError, match=r"the gradient norm is nan at step 0 .*so optimizer\.lr is not the cause"
    ) as error:
        make_trainer(callbacks=[Guardrails()]).fit(module)
    assert torch.equal(module.linear.weight, before) and "ckpt" not in str(error.value)


def test_a_validation_loss_that_is_not_finite_stops(tiny_module, make_trainer):
    module = tiny_module()
    module.val_dataloader = module.train_dataloader
    module.validation_step = lambda batch, batch_idx: module.log("val/loss", float("nan"), batch_size=1)
    with pytest.raises(UserError, match=r"val/loss is nan at step 4 .*lower optimizer\.lr") as error:
        make_trainer(callbacks=[Guardrails()]).fit(module)
    assert "ckpt" not in str(error.value)  # there is no checkpoint


def test_an_exploding_kl_is_warned_of_once_each_time(tiny_module, make_trainer, caplog):
    kls = [5.0, 30.0, 40.0, 5.0, 31.0]
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        make_trainer(callbacks=[Guardrails(kl_factor=3.0, kl_target=6.0)], max_epochs=5).fit(
            tiny_module(figures=[{"objective/kl": kl} for kl in kls])
        )
    messages = [record.getMessage() for record in caplog.records if "objective/kl" in record.getMessage()]
    assert len(messages) == 2
    assert "30 nats per response after epoch 2 (step 8), 5.0 times its target 6" in messages[0]


def test_an_entropy_collapse_is_warned_of_and_its_first_value_is_state(tiny_module, make_trainer, caplog):
    guardrails = Guardrails(entropy_factor=0.1)
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        make_trainer(callbacks=[guardrails]).fit(
            tiny_module(figures=[{"objective/entropy": x} for x in (2.0, 1.0, 0.1)])
        )
    assert sum("objective/entropy is 0.1" in record.getMessage() for record in caplog.records) == 1
    other = Guardrails()
    other.load_state_dict(guardrails.state_dict())
    assert other.state_dict() == guardrails.state_dict()
    assert guardrails.state_dict() | {"first_loss": None} == {
        "first_entropy": 2.0,
        "warned": {"entropy": True},
        "first_loss": None,
    }


def test_an_engine_that_samples_from_another_policy_is_warned_of(tiny_module, make_trainer, caplog):
    with caplog.at_level(logging.WARNING, logger="rlhf_lightning"):
        make_trainer(callbacks=[Guardrails()], max_epochs=2).fit(
            tiny_module(figures=[{"rollout/logprob_gap": gap} for gap in (0.1, 0.7)])
        )
    warnings = [record.getMessage() for record in caplog.records if "logprob_gap" in record.getMessage()]
    assert len(warnings) == 1 and "rollout/logprob_gap is 0.7 nats per token after epoch 2" in warnings[0]


def test_the_target_is_the_modules_own_unless_its_coefficient_is_fixed(tiny_module, make_trainer, caplog):
    for kind, warnings in (("adaptive", 1), ("fixed", 0)):
        caplog.clear()
        module = tiny_module(figures=[{"objective/kl": 9.0}])
        module.kl = KLPenalty(kind=kind, target=2.0)
        make_trainer(callbacks=[Guardrails()], max_epochs=1).fit(module)
        assert sum("times its target 2" in record.getMessage() for record in caplog.records) == warnings
