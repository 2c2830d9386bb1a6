"""Resuming exactly: the random states a Lightning checkpoint leaves out."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class ReproducibleResume(L.Callback):
    """Keeps the global random states in every checkpoint and puts them back before the first resumed step.

    Data order, prompts and responses are functions of (seed, epoch, rank) and need no state; what is left is what
    draws from the global generators: dropout, and user code.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """The states of Python, NumPy, torch and every CUDA device, now."""
        name, keys, position, has_gauss, cached = np.random.get_state()
        version, internal, gauss = random.getstate()
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached),
            "python": (version, list(internal), gauss),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the states until training starts: loading and set-up may draw numbers themselves."""
        self._restored = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the states back."""
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        torch.set_rng_state(state["torch"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
