"""Devices missing on this machine, as far as can be seen without torch, which takes seconds to import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.errors import UserError

# Device files of NVIDIA's, AMD's and WSL's drivers: without any of them, torch finds no GPU.
_GPU_FILES = ("nvidia[0-9]*", "nvidiactl", "nvhost-*", "nvgpu", "kfd", "dxg")


GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # a machine with one of these may train on a GPU


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raise UserError if a Trainer's settings ask for something that this machine certainly does not have."""
    strategy = trainer.get("strategy")
    name = str(strategy.get("_target_") if isinstance(strategy, Mapping) else strategy)
    if "deepspeed" in name.lower() and importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "trainer.strategy: DeepSpeed is not installed here; pip install deepspeed, or choose trainer=fsdp2"
        )
    asked = trainer.get("accelerator")
    absent = {
        **dict.fromkeys(("gpu", "cuda"), sys.platform.startswith("linux") and not _has_gpu()),
        "mps": sys.platform != "darwin",
        "tpu": importlib.util.find_spec("torch_xla") is None,
    }
    if absent.get(str(asked)):
        raise UserError(
            f"trainer.accelerator: found {asked}, and there is none on this machine; trainer.accelerator=auto "
            "trainer.devices=1 runs everywhere"
        )


def _has_gpu() -> bool:
    return any(True for pattern in _GPU_FILES for _ in Path("/dev").glob(pattern))
