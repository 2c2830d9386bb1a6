"""Moving numbers from the host to a device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def to_device(values: Any, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """Return a CPU tensor, or plain numbers, on the device, without waiting for the device's queue.

    CUDA copies pageable memory before the call returns, so `values` may be changed or freed afterwards.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.to(device, non_blocking=torch.device(device).type == "cuda" and tensor.is_cpu)
