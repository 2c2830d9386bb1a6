"""Every declared key of a state is restored."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_lightning.callbacks import ReproducibleResume


def draw(source: str) -> float:
    return {"python": random.random, "numpy": np.random.rand, "torch": lambda: float(torch.rand(1))}[source]()


@pytest.mark.parametrize("source", ["python", "numpy", "torch"])
def test_a_checkpoint_restores_the_random_numbers_of_every_library(source: str, tmp_path: Path) -> None:
    draw(source)
    torch.save(ReproducibleResume().state_dict(), tmp_path / "state.pt")
    expected = [draw(source) for _ in range(3)]
    resumed = ReproducibleResume()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    draw(source)  # set-up may draw random numbers
    resumed.on_train_start(None, None)  # type: ignore[arg-type]
    assert [draw(source) for _ in range(3)] == expected
