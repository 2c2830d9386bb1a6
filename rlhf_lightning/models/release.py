"""Freeing the memory of networks that are no longer used."""

from __future__ import annotations

import gc

import torch


def release_memory() -> None:
    """Free networks and optimiser states that are only referenced by each other, on the GPU too.

    Trainer, module and loaders refer to each other in cycles, which Python frees only after enough new objects: it
    counts objects, not the gigabytes behind them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
