"""Running another library's engine in the trainer's process without a trace in the trainer's state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run code as in a separate process, as far as torch's global state goes.

    Inside, float32 is the default dtype and there is no autocast, whatever the trainer's precision (a rollout runs in
    its forward context). Afterwards the random states of torch, NumPy and Python are restored: an engine that seeds
    itself would change the numbers of a resumed run. So is the number of threads; vLLM on CPU even replaces the
    function that sets it.
    """
    default, numbers, drawn = torch.get_default_dtype(), np.random.get_state(), random.getstate()
    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    kind = "cuda" if devices else "cpu"
    try:
        with torch.random.fork_rng(devices), torch.autocast(kind, enabled=False), torch.autocast("cpu", enabled=False):
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(default)
        torch.set_num_threads = set_threads
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        np.random.set_state(numbers)
        random.setstate(drawn)
