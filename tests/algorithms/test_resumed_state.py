"""State besides the weights is declared once, and no class can forget that of its bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from rlhf_lightning.algorithms import SFTModule
from rlhf_lightning.errors import UserError
from tests.algorithms.conftest import ADAM, sft, trainer
from tests.tiny import tiny_model, tiny_tokenizer


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Counting(SFTModule):
    resumes: ClassVar[tuple[str, ...]] = ("counter", "history")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counter, self.history = Counter(), [0.0]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.counter.count += 1
        self.history = [*self.history, float(self.counter.count)]


class Forgetful(Counting):
    """Neither its state nor its hooks call the base class's."""

    resumes: ClassVar[tuple[str, ...]] = ("last",)
    last: Any = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.last = torch.tensor([batch_idx])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert checkpoint["mine"] == 1


def train(make: Any, folder: Path, steps: int, resume: Path | None = None) -> Any:
    module = make(tiny_model, tiny_tokenizer(), ADAM)
    save = ModelCheckpoint(folder, filename="cut", save_top_k=-1, every_n_train_steps=steps)
    run = trainer(folder, enable_checkpointing=True, callbacks=[save], max_steps=steps, log_every_n_steps=99)
    run.fit(module, datamodule=sft()[1], ckpt_path=resume)
    return module


@pytest.mark.parametrize("make", [Counting, Forgetful])
def test_hooks_of_its_own_cannot_hide_those_of_the_base(make: Any, tmp_path: Path) -> None:
    train(make, tmp_path, 3)
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    assert {"origin", "recorded", "resumes"} <= set(saved)
    assert saved["resumes"]["history"] == [0.0, 1.0, 2.0, 3.0]
    resumed = train(make, tmp_path / "rest", 4, tmp_path / "cut.ckpt")
    assert resumed.counter.count == 4
    assert resumed.history == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert set(saved["resumes"]) == {"counter", "history"} | ({"last"} if make is Forgetful else set())
    alone = train(make, tmp_path / "alone", 4)
    assert float(resumed._recorded()["train/loss"].weight) == float(alone._recorded()["train/loss"].weight)


@pytest.mark.parametrize("name", ["counter", "history"])
def test_a_checkpoint_without_a_declared_state_is_refused(name: str, tmp_path: Path) -> None:
    train(Counting, tmp_path, 3)
    saved = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    del saved["resumes"][name]
    torch.save(saved, tmp_path / "less.ckpt")
    with pytest.raises(UserError, match=f"^ckpt: it has no {name}, which Counting resumes"):
        train(Counting, tmp_path, 4, tmp_path / "less.ckpt")
