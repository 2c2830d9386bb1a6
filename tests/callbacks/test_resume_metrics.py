"""The last metrics of a run that is resumed at its very end."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_lightning.callbacks import ReproducibleResume


@pytest.mark.parametrize("read_first", [True, False], ids=["one device and DDP", "FSDP2"])
def test_the_last_metrics_come_back_whenever_the_checkpoint_is_read(read_first: bool) -> None:
    """Lightning reads the checkpoint before the fit starts and then clears its metrics; it reads FSDP2's afterwards."""
    trainer: Any = SimpleNamespace(callback_metrics={}, optimizers=[], ckpt_path=None)
    checkpoint = {"metrics": {"val/loss": torch.tensor(0.5)}, "loops": {"fit_loop": {"state_dict": {}}}}
    callback, module = ReproducibleResume(), torch.nn.Linear(1, 1)
    if read_first:
        callback.on_load_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
        trainer.callback_metrics.clear()
    callback.on_fit_start(trainer, module)  # type: ignore[arg-type]
    if not read_first:
        callback.on_load_checkpoint(trainer, module, checkpoint)  # type: ignore[arg-type]
    assert {name: float(value) for name, value in trainer.callback_metrics.items()} == {"val/loss": 0.5}
