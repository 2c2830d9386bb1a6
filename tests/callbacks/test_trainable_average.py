from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

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
