"""The data with a real Trainer: accumulation, precision, and a mid-epoch resume."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from rlhf_lightning.data import (
    BatchLoader,
    PreferenceDataModule,
    PromptDataModule,
    SFTDataModule,
    TokenizedSequence,
    collate_sequences,
)
from rlhf_lightning.data.batches import IGNORED
from tests.data.conftest import build_tokenizer

WIDTH = 6
pytestmark = [
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),  # every resumed run has its own
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # inside Lightning
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but"),
]


class LinearModel(LightningModule):
    """Next-token prediction without context: the loss depends on every label of a batch."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
        self.lr = lr
        self.seen: list[tuple[int, list[int]]] = []
        self.validated: list[int] = []

    def loss(self, batch: Any) -> torch.Tensor:
        one_hot = nn.functional.one_hot(batch.input_ids[:, :-1], WIDTH).to(self.linear.weight.dtype)
        logits, labels = self.linear(one_hot), batch.labels[:, 1:]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / batch.denominator

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.input_ids[:, 0].tolist()))
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def make_rows(count: int = 11) -> list[TokenizedSequence]:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = int(torch.randint(2, 9, (1,), generator=generator))
        ids = torch.randint(0, WIDTH, (length,), generator=generator).tolist()
        rows.append(TokenizedSequence(ids, [IGNORED, *ids[1:]]))
    return rows


def make_loader(batch_size: int = 2, **options: Any) -> BatchLoader:
    rows = make_rows()
    return BatchLoader(
        rows, partial(collate_sequences, pad_id=0), batch_size, weights=[row.weight for row in rows], **options
    )


def make_trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{"enable_checkpointing": False, "num_sanity_val_steps": 0, **options},
    )


@pytest.mark.parametrize("limit", [1.0, 10])
def test_accumulating_eight_batches_of_one_equals_one_batch_of_eight(tmp_path: Path, limit: float | int) -> None:
    models = []
    for batch_size, accumulate in ((8, 1), (1, 8)):
        model = LinearModel()
        batches = None
        if limit == 10:  # the trainer stops in the second window
            if batch_size == 8:
                continue
            batches = 10
        loader = make_loader(batch_size, accumulate=accumulate, batches=batches)
        make_trainer(tmp_path, max_epochs=2, accumulate_grad_batches=accumulate, limit_train_batches=limit).fit(
            model, loader
        )
        models.append(model)
    if limit == 10:  # the same by hand
        by_hand, loader = LinearModel(), make_loader(10)
        optimizer = by_hand.configure_optimizers()
        for epoch in range(2):
            loader.set_epoch(epoch)
            rows = [loader.rows[i] for i in loader.order()[:10]]
            for window in (rows[:8], rows[8:]):
                optimizer.zero_grad()
                by_hand.loss(collate_sequences(window, pad_id=0)).backward()
                optimizer.step()
        models.append(by_hand)
    assert len(models) == 2
    for first, second in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_sees_the_remaining_batches_and_ends_bitwise_equal(tmp_path: Path, accumulate: int) -> None:
    def fit(folder: Path, ckpt: Path | None = None) -> LinearModel:
        model = LinearModel()
        checkpoints = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = make_trainer(
            folder,
            max_epochs=3,
            accumulate_grad_batches=accumulate,
            enable_checkpointing=True,
            callbacks=[checkpoints],
        )
        trainer.fit(model, make_loader(accumulate=accumulate), make_loader(shuffle=False), ckpt_path=ckpt)
        return model

    whole = fit(tmp_path / "whole")
    per_epoch = len(make_loader())
    assert len(whole.seen) == 3 * per_epoch
    steps = 3 * per_epoch // accumulate
    for step in range(1, steps):
        resumed = fit(tmp_path / f"resumed-{step}", ckpt=tmp_path / "whole" / f"step={step}.ckpt")
        assert resumed.seen == whole.seen[step * accumulate :], step
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), (step, name)
        assert set(whole.validated) == set(resumed.validated)


def test_a_checkpoint_at_the_end_of_an_epoch_resumes_with_the_next(tmp_path: Path) -> None:
    def fit(folder: Path, ckpt: Path | None = None) -> LinearModel:
        model = LinearModel()
        checkpoints = ModelCheckpoint(dirpath=folder, filename="{epoch}", every_n_epochs=1, save_top_k=-1)
        trainer = make_trainer(folder, max_epochs=3, enable_checkpointing=True, callbacks=[checkpoints])
        trainer.fit(model, make_loader(), make_loader(shuffle=False), ckpt_path=ckpt)
        return model

    whole = fit(tmp_path / "whole")
    for epoch in (0, 1):
        resumed = fit(tmp_path / f"resumed-{epoch}", ckpt=tmp_path / "whole" / f"epoch={epoch}.ckpt")
        assert resumed.seen == [entry for entry in whole.seen if entry[0] > epoch]
        assert torch.equal(resumed.linear.weight, whole.linear.weight)


def test_validation_sees_every_row_at_every_check(tmp_path: Path) -> None:
    model = LinearModel()
    make_trainer(tmp_path, max_epochs=2, val_check_interval=3, num_sanity_val_steps=-1).fit(
        model, make_loader(), make_loader(shuffle=False)
    )
    assert sum(model.validated) == 11 * (1 + 2 * 2)


def test_data_without_validation_trains_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    data = SFTDataModule(build_tokenizer(), [{"text": "a b c"}])

    class Module(LinearModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.linear.weight.sum()

    module = Module()
    make_trainer(tmp_path, max_epochs=1).fit(module, datamodule=data)
    assert module.validated == []
    assert [str(w.message) for w in recwarn if "zero" in str(w.message) or "val" in str(w.message)] == []


def test_prompts_arrive_in_batches_for_validation(tmp_path: Path) -> None:
    batches: list[Any] = []

    class Module(LinearModel):
        def train_dataloader(self) -> Any:
            return make_loader()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            batches.append(batch)

    rows = [{"prompt": "a b", "answer": "c"}] * 65
    data = PromptDataModule(build_tokenizer(), rows, val=rows)
    make_trainer(tmp_path, max_epochs=1).fit(Module(), datamodule=data)
    assert [len(batch) for batch in batches] == [33, 32]
    assert batches[0][0].columns == {"answer": "c"}


def test_half_precision_does_not_cast_the_floats_of_a_batch(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.1}] * 2
    dtypes: list[torch.dtype] = []

    class Module(LinearModel):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            dtypes.extend([batch.margin.dtype, batch.pair_weights.dtype, self.linear.weight.dtype])
            return self.linear.weight.sum()

    module = Module().float()
    data = PreferenceDataModule(build_tokenizer(), rows, batch_size=2)
    make_trainer(tmp_path, max_epochs=1, precision="bf16-true").fit(module, datamodule=data)
    assert dtypes == [torch.float32, torch.float32, torch.bfloat16]
