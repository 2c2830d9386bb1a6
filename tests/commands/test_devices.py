"""Missing devices and strategies are refused before torch is imported."""

from __future__ import annotations

import subprocess
import sys
import typing

import pytest

from rlhf_lightning.commands.composition import compose_config
from rlhf_lightning.commands.train import check
from rlhf_lightning.config import devices
from rlhf_lightning.errors import UserError
from rlhf_lightning.source.library_types import Strategy


def test_the_strategies_of_the_schema_are_lightnings():
    from lightning.pytorch.strategies import StrategyRegistry

    assert set(typing.get_args(Strategy)) == {"auto", *StrategyRegistry.available_strategies()}


def test_an_unknown_strategy_is_refused_with_the_nearest():
    config = compose_config("train", ["experiment=sft", "trainer.strategy=dpp", "model.path=x", "data.train=y"])
    with pytest.raises(UserError, match=r'^trainer\.strategy: found "dpp"; .*did you mean ddp\?$'):
        check(config)


@pytest.mark.parametrize("asked", ["gpu", "cuda", "mps", "tpu"])
def test_a_device_that_is_not_here_is_refused(asked, monkeypatch):
    monkeypatch.setattr(devices, "_has_gpu", lambda: False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(UserError, match=rf"^trainer\.accelerator: found {asked}, but this machine has none"):
        devices.check_devices({"accelerator": asked})


def test_a_device_that_may_be_here_is_left_to_lightning(monkeypatch):
    monkeypatch.setattr(devices, "_has_gpu", lambda: True)
    for asked in ("gpu", "auto", "cpu", None):
        devices.check_devices({"accelerator": asked})


def test_run_dir_and_devices_are_checked_without_torch(empty_folder):
    code = (
        "import sys\n"
        "from rlhf_lightning.commands import train\nfrom rlhf_lightning.config import devices\n"
        "from rlhf_lightning.commands.composition import compose_config\n"
        "devices._has_gpu = lambda: False\n"
        "words = ['experiment=sft', 'model.path=x', 'data.train=y', 'logger=none', 'run_dir=run']\n"
        "def refused(*more):\n"
        "    try: train.run(compose_config('train', [*words, *more]))\n"
        "    except ValueError as error: print(error)\n"
        "    assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
        "refused('trainer.accelerator=gpu')\n"
        "open('run', 'w').close()\n"
        "refused()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("trainer.accelerator: found gpu")
    assert lines[1].startswith("run_dir: run is a file")
