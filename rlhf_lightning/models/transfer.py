"""Numbers of the host on their way to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the CPU, or plain numbers, on the device; the host does not wait until the device has caught up.

    CUDA takes a copy of what is in ordinary memory before the call returns, so `values` may be changed or freed then.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda" and tensor.is_cpu)
