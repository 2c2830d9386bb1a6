"""The smallest real module, with the metrics and samples of a PPO module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class TinyModule(LightningModule):
    """A linear fit. `scales[step]` multiplies the loss of a step (NaN is the fault to be caught).

    `figures[epoch]` is logged at the epoch's end, like the metrics of a PPO rollout.
    """

    def __init__(self, scales: dict[int, float] | None = None, figures: list[dict[str, float]] | None = None) -> None:
        super().__init__()
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)
        self.linear = torch.nn.Linear(2, 1)
        self.scales = scales or {}
        self.figures = figures or []
        self.last_samples: list[dict[str, Any]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.linear(self.frozen(batch[0])).square().mean() * self.scales.get(self.global_step, 1.0)
        self.log("train/loss", loss, batch_size=len(batch[0]))
        epoch = self.current_epoch
        self.last_samples = [
            {"prompt": f"p{i}", "response": f"é{epoch}", "score": torch.tensor(float(i)), "kl": 0.5} for i in range(3)
        ]
        return loss

    def on_train_epoch_end(self) -> None:
        if self.figures:
            self.log_dict(self.figures[self.current_epoch], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.linear.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=1)


@pytest.fixture
def tiny_module() -> type[TinyModule]:
    torch.manual_seed(0)
    return TinyModule


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(**arguments: Any) -> Trainer:
        defaults: dict[str, Any] = {
            "default_root_dir": tmp_path,
            "accelerator": "cpu",
            "max_epochs": 3,
            "logger": False,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "num_sanity_val_steps": 0,
        }
        return Trainer(**(defaults | arguments))

    return make
