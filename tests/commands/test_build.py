"""The parts of a run's Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.callbacks import Checkpoint

from rlhf_lightning.commands.build import build_trainer
from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.errors import UserError
from rlhf_lightning.runs.run import Run


def trainer(*overrides: str) -> Any:
    settings = ["experiment=sft_demo", "logger=none", "trainer.accelerator=cpu", "callbacks.progress=null"]
    return build_trainer(Run(compose_config("train", [*settings, *overrides]), Path("run")))


def test_a_checkpoint_callback_that_is_switched_off_is_not_replaced_by_lightnings(empty_folder: Path) -> None:
    assert trainer().checkpoint_callbacks
    assert not [each for each in trainer("callbacks.checkpoint=null").callbacks if isinstance(each, Checkpoint)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for what is not there")
@pytest.mark.parametrize("accelerator", ["gpu", "tpu"])
def test_an_accelerator_that_is_not_there_is_refused(accelerator: str, empty_folder: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^trainer\.accelerator and .*found {accelerator} and 1.*no GPUs here"
    ) as error:
        trainer(f"trainer.accelerator={accelerator}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("strategy", ["bogus", "fsdp"])
def test_a_strategy_that_lightning_refuses_is_one_line(strategy: str, empty_folder: Path) -> None:
    with pytest.raises(UserError, match=rf"^trainer\.strategy: found {strategy}; Lightning refuses it: ") as error:
        trainer(f"trainer.strategy={strategy}")
    assert "\n" not in str(error.value)


def test_a_callback_that_cannot_be_imported_is_one_line(empty_folder: Path) -> None:
    with pytest.raises(UserError, match=r"^callbacks\.x\._target_: cannot import no\.such\.Class: ") as error:
        trainer("+callbacks.x._target_=no.such.Class")
    assert "\n" not in str(error.value)


def test_a_list_of_devices_is_refused_on_a_cpu(empty_folder: Path) -> None:
    overrides = ["experiment=sft_demo", "logger=none", "trainer.accelerator=cpu", "trainer.devices=[0]"]
    with pytest.raises(UserError, match=r"^trainer\.accelerator and trainer\.devices: found cpu and \[0\]; Lightning"):
        build_trainer(Run(compose_config("train", overrides), empty_folder))


def test_under_srun_lightning_does_not_queue_jobs_again_itself(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    environment = trainer()._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert not environment.auto_requeue
    own = "+trainer.plugins={_target_: lightning.fabric.plugins.environments.LightningEnvironment}"
    assert not isinstance(trainer(own)._accelerator_connector.cluster_environment, SLURMEnvironment)
