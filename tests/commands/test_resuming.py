"""A run resumed with another config reports the differences, and refuses to become another run."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.commands import train
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.durable import save_with_manifest
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.resuming import check_same_run
from rlhf_lightning.runs.run_folder import write_config

AVERAGE = "+callbacks.average._target_=rlhf_lightning.callbacks.TrainableAverage"


def resume(folder: Any, began: list[str], goes_on: list[str]) -> None:
    write_config(folder, compose_config("train", ["experiment=ppo_demo", *began]))
    check_same_run(compose_config("train", ["experiment=ppo_demo", *goes_on]), folder / "checkpoints" / "last.ckpt")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("model.path=elsewhere", "model.path: outputs/demo/sft -> elsewhere"),
        ("data.limit=3", "data.limit: null -> 3"),
        ("seed=4", "seed: 0 -> 4"),
        ("prepare.seed=4", "prepare.seed: 0 -> 4"),
        ("algorithm.kl.target=3", "algorithm.kl.target: 1.8 -> 3"),
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay: 0.0 -> 0.1"),
        ("rollout.batch_size=256", "rollout.batch_size: 512 -> 256"),
        ("reward.function=a.b", "reward.function: null -> a.b"),
        ("trainer.devices=2", "trainer.devices: 1 -> 2"),
        ("trainer.precision=bf16-mixed", "trainer.precision: 32-true -> bf16-mixed"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches: 1 -> 2"),
        ("trainer.max_epochs=31", "trainer.max_epochs: 30 -> 31"),  # its learning rate falls to zero over 30 epochs
        (AVERAGE, "callbacks.average: null -> {'_target_': 'rlhf_lightning.callbacks.TrainableAverage'}"),
    ],
)
def test_what_changes_the_meaning_is_printed_and_refused_unless_told_so(override, line, tmp_path, capsys):
    with pytest.raises(UserError, match=rf"^{line.split(':')[0]}: changed since the run began.*resume_anyway=true"):
        resume(tmp_path, [], [override])
    assert capsys.readouterr().err == f"resume: {line}\n"
    resume(tmp_path, [], [override, "resume_anyway=true"])
    assert capsys.readouterr().err == f"resume: {line}\n"


@pytest.mark.parametrize(
    "override",
    [
        "logger=none",
        "name=x",
        "callbacks.checkpoint.every_n_epochs=2",
        "callbacks.progress=null",
        "optimizer.lr=0.1",
        "trainer.log_every_n_steps=3",
    ],
)
def test_what_is_harmless_is_printed_and_accepted(override, tmp_path, capsys):
    resume(tmp_path, [], [override])
    assert capsys.readouterr().err.startswith(f"resume: {override.split('=')[0]}")


def test_the_same_config_prints_nothing(tmp_path, capsys):
    resume(tmp_path, ["seed=3"], ["seed=3", "ckpt=last", "resume_anyway=true"])
    assert capsys.readouterr().err == ""


def test_a_run_that_began_before_a_key_existed_goes_on_as_it_was(tmp_path, capsys):
    config = compose_config("train", ["experiment=ppo_demo"])
    write_config(tmp_path, {key: value for key, value in config.items() if key != "matmul_precision"})
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    check_same_run(config, checkpoint)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match=r"^matmul_precision: changed since the run began"):
        check_same_run({**config, "matmul_precision": "high"}, checkpoint)
    assert capsys.readouterr().err == "resume: matmul_precision: highest -> high\n"


@pytest.mark.parametrize("scheduler", ["scheduler=constant", "~scheduler"])
def test_a_run_whose_learning_rate_does_not_depend_on_its_length_may_be_prolonged(scheduler, tmp_path):
    resume(tmp_path, [scheduler], [scheduler, "trainer.max_epochs=99"])


def test_a_checkpoint_outside_a_run_folder_is_not_compared(tmp_path):
    check_same_run(compose_config("train", ["experiment=ppo_demo"]), tmp_path / "checkpoints" / "last.ckpt")


def test_the_config_of_a_refused_run_stays(empty_folder):
    config = compose_config("train", ["experiment=sft_demo", "run_dir=run"])
    write_config(empty_folder / "run", config)
    former = (empty_folder / "run/config.yaml").read_text()
    (empty_folder / "run/checkpoints").mkdir()
    save_with_manifest(empty_folder / "run/checkpoints/last.ckpt", lambda file: file.write(b"x"))
    with pytest.raises(UserError, match=r"^seed: changed"):
        train.run({**config, "seed": 1, "ckpt": "last"})
    assert (empty_folder / "run/config.yaml").read_text() == former
