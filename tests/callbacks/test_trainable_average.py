from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from rlhf_lightning.callbacks import TrainableAverage
from rlhf_lightning.errors import UserError


class Recorder(Callback):
    """Records the live weight before training and after each step."""

    def __init__(self):
        self.weights = []

    def on_train_start(self, trainer, pl_module):
        self.weights.append(pl_module.linear.weight.detach().clone())

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.weights.append(pl_module.linear.weight.detach().clone())


def test_the_average_is_what_the_formula_says_and_is_what_remains(tiny_module, make_trainer):
    recorder, module = Recorder(), tiny_module()
    average = TrainableAverage(decay=0.3)
    make_trainer(callbacks=[recorder, average], max_epochs=1).fit(module)
    expected = recorder.weights[0].clone()
    for n, weight in enumerate(recorder.weights[1:], start=1):
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(module.linear.weight.detach(), expected)
    average.swap(module)
    assert torch.equal(module.linear.weight, recorder.weights[-1])


def test_frozen_parameters_are_not_kept(tiny_module, make_trainer):
    average = TrainableAverage()
    make_trainer(callbacks=[average], max_epochs=1).fit(tiny_module())
    assert sorted(average.state_dict()["average"]) == ["linear.bias", "linear.weight"]


def test_accumulating_batches_are_no_steps(tiny_module, make_trainer):
    average = TrainableAverage()
    make_trainer(callbacks=[average], max_epochs=1, accumulate_grad_batches=2).fit(tiny_module())
    assert average.state_dict()["steps"] == 2


def test_a_resumed_run_ends_with_the_same_average(tiny_module, make_trainer, tmp_path):
    torch.manual_seed(1)
    module = tiny_module()
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", auto_insert_metric_name=False)
    make_trainer(callbacks=[TrainableAverage(0.5), checkpoint], enable_checkpointing=True).fit(module)
    resumed = tiny_module()
    make_trainer(callbacks=[TrainableAverage(0.5)]).fit(resumed, ckpt_path=tmp_path / "0.ckpt")
    assert torch.equal(module.linear.weight, resumed.linear.weight)


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(UserError, match=r"decay: found 1\.0; must be"):
        TrainableAverage(1.0)


class Validated(Callback):
    """Records the live weight where another callback could save it, and the average's state after each step."""

    def __init__(self, average):
        self.average, self.during, self.after, self.steps = average, [], [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.steps.append((trainer.global_step, self.average.state_dict()["steps"]))

    def on_validation_batch_start(self, trainer, pl_module, *args):
        self.during.append(pl_module.linear.weight.detach().clone())
        self.kept = self.average.state_dict()["average"]["linear.weight"].clone()

    def on_validation_end(self, trainer, pl_module):
        self.after.append(pl_module.linear.weight.detach().clone())


def validated(tiny_module, make_trainer, dtype=torch.float32, **settings):
    """Return the module, the average and what was seen, of a run that validates in the middle of its epochs."""
    torch.manual_seed(1)

    class Module(tiny_module):
        def validation_step(self, batch, batch_idx):
            assert torch.isfinite(self.linear(batch[0])).all()

        def val_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(1, 2, dtype=dtype)))

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.ones(4, 2, dtype=dtype)), batch_size=1)

    module, average = Module().to(dtype), TrainableAverage(decay=0.5, **settings)
    seen, recorder = Validated(average), Recorder()
    trainer = make_trainer(callbacks=[seen, recorder, average], val_check_interval=2, max_epochs=2)
    trainer.fit(module)
    return module, average, seen, recorder, trainer


def test_a_validation_sees_the_average_and_training_sees_nothing_of_it(tiny_module, make_trainer):
    module, _, seen, recorder, trainer = validated(tiny_module, make_trainer, validate=True)
    plain, _, looked, steps, _ = validated(tiny_module, make_trainer)
    assert [torch.equal(a, b) for a, b in zip(recorder.weights, steps.weights, strict=True)] == [True] * 9
    assert all(torch.equal(a, b) for a, b in zip(seen.after, looked.after, strict=True))
    assert torch.equal(seen.during[-1], seen.kept) and not torch.equal(seen.during[-1], seen.after[-1])
    assert torch.equal(looked.during[-1], looked.after[-1])
    assert torch.equal(module.linear.weight, plain.linear.weight)
    distance = (seen.kept - seen.after[-1]).square().sum()
    assert trainer.callback_metrics["average/decay"] == 0.5
    assert trainer.callback_metrics["average/distance"] >= (distance / 100).sqrt() > 0


def test_rounding_to_the_weights_type_does_not_enter_the_average(tiny_module, make_trainer):
    _, with_validation, *_ = validated(tiny_module, make_trainer, torch.bfloat16, validate=True)
    _, without, *_ = validated(tiny_module, make_trainer, torch.bfloat16)
    kept, expected = (each.state_dict()["average"]["linear.weight"] for each in (with_validation, without))
    assert kept.dtype == torch.float32 and torch.equal(kept, expected)
    assert not torch.equal(kept, kept.bfloat16().float())


def test_the_average_of_a_step_is_there_for_a_callback_that_saves_after_it(tiny_module, make_trainer):
    """The callbacks of a run come in any order; one that saves on SIGTERM comes before those that a user adds."""
    _, _, seen, _, _ = validated(tiny_module, make_trainer)
    assert seen.steps == [(n, n) for n in range(1, 9)]


def test_an_average_that_is_only_validated_leaves_the_live_weights(tiny_module, make_trainer):
    module, _, _, recorder, _ = validated(tiny_module, make_trainer, validate=True, export=False)
    assert torch.equal(module.linear.weight, recorder.weights[-1])


def test_an_error_in_a_validation_leaves_the_live_weights(tiny_module, make_trainer):
    class Fails(Callback):
        def on_validation_batch_end(self, *args):
            raise RuntimeError("no")

    class Module(tiny_module):
        def validation_step(self, batch, batch_idx):
            pass

        def val_dataloader(self):
            return self.train_dataloader()

    module, recorder = Module(), Recorder()
    average = TrainableAverage(0.5, validate=True)
    with pytest.raises(RuntimeError, match="no"):
        make_trainer(callbacks=[recorder, Fails(), average], val_check_interval=2).fit(module)
    assert torch.equal(module.linear.weight, recorder.weights[-1])


def test_a_run_resumed_at_its_end_has_the_average(tiny_module, make_trainer, tmp_path):
    module = tiny_module()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    make_trainer(callbacks=[TrainableAverage(0.5), checkpoint], enable_checkpointing=True).fit(module)
    resumed = tiny_module()
    make_trainer(callbacks=[TrainableAverage(0.5)]).fit(resumed, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(module.linear.weight, resumed.linear.weight)


def test_an_average_that_nothing_uses_is_refused():
    with pytest.raises(UserError, match=r"^callbacks\.average\.export: found false beside validate=false"):
        TrainableAverage(export=False)
