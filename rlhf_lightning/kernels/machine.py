"""Properties of the machine that the choice of kernels depends on."""

from __future__ import annotations

import functools
from pathlib import Path

import torch


def device_kind() -> str:
    """Return the kind of device that this machine trains on: `cuda`, another accelerator's name, or `cpu`."""
    if torch.cuda.is_available():
        return "cuda"
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


@functools.cache
def onednn_is_faster() -> bool:
    """Return whether this machine computes on an AMD CPU with AVX-512, and without a GPU."""
    if torch.cuda.is_available() or not torch.backends.mkldnn.is_available():
        return False
    cpuinfo = Path("/proc/cpuinfo")
    vendor = "vendor_id\t: AuthenticAMD"
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and cpuinfo.is_file()
        and vendor in cpuinfo.read_text(encoding="utf-8")
    )
