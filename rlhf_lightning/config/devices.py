"""Devices missing on this machine, as far as can be seen without torch, which takes seconds to import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_lightning.environment import how_to_get
from rlhf_lightning.errors import UserError

# Device files of NVIDIA's, AMD's and WSL's drivers: without any of them, torch finds no GPU.
_GPU_FILES = ("nvidia[0-9]*", "nvidiactl", "nvhost-*", "nvgpu", "kfd", "dxg")
_WHY_NONE = dict.fromkeys(("gpu", "cuda"), " that its driver shows (see nvidia-smi)")
GPUS = (Path("/dev/nvidiactl"), Path("/dev/kfd"))  # a machine with one of these may train on a GPU


def check_devices(trainer: Mapping[str, Any]) -> None:
    """Raise UserError if a Trainer's settings ask for something that this machine certainly does not have."""
    strategy = trainer.get("strategy")
    name = str(strategy.get("_target_") if isinstance(strategy, Mapping) else strategy)
    if "deepspeed" in name.lower() and importlib.util.find_spec("deepspeed") is None:
        raise UserError(f"trainer.strategy: DeepSpeed is not installed here; {how_to_get('deepspeed')}")
    asked = trainer.get("accelerator")
    absent = {
        **dict.fromkeys(("gpu", "cuda"), sys.platform.startswith("linux") and not _has_gpu()),
        "mps": sys.platform != "darwin",
        "tpu": importlib.util.find_spec("torch_xla") is None,
    }
    if absent.get(str(asked)):
        raise UserError(
            f"trainer.accelerator: found {asked}, but this machine has none{_WHY_NONE.get(str(asked), '')}; "
            "trainer.accelerator=auto trainer.devices=1 runs everywhere"
        )


def why_torch_sees_none(version: str, cuda: object) -> str:
    """Say why torch finds no GPU although the machine has one; empty where it has none.

    Args:
        version: `torch.__version__`.
        cuda: `torch.version.cuda`, or that of ROCm; None for a build without GPUs.
    """
    if not _has_gpu():
        return ""
    if cuda is None:
        return (
            f", because torch {version} is a build for CPUs: install one for this machine's GPU "
            "(https://pytorch.org/get-started/locally)"
        )
    return f", although it has one: the driver may be older than torch {version} needs (see nvidia-smi)"


def _has_gpu() -> bool:
    return any(True for pattern in _GPU_FILES for _ in Path("/dev").glob(pattern))
