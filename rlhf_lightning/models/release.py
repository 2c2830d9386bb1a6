"""Memory of networks that are no longer used."""

from __future__ import annotations

import gc

import torch


def release_memory() -> None:
    """Free the networks and optimiser states that nothing refers to but they themselves, on the GPU as well.

    Trainer, module and loaders refer to each other in circles, which Python frees when it has made enough new objects:
    it knows of their number, not of the gigabytes behind them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
