"""Trainer settings that shorten a run: each has its effect, or is refused in one line."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from rlhf_lightning.algorithms import PretrainingMix, RewardShaping
from rlhf_lightning.errors import UserError
from rlhf_lightning.rollout import RolloutSettings
from tests.algorithms.conftest import dpo, ppo, reward, sft, trainer
from tests.tiny import tiny_tokenizer


class Rows(L.Callback):
    """Records the token ids of every batch, by epoch."""

    def __init__(self) -> None:
        self.seen: dict[int, list[list[list[int]]]] = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.seen.setdefault(trainer.current_epoch, []).append(batch.input_ids.tolist())


@pytest.mark.parametrize("kind", ["sft", "dpo", "reward"])
def test_overfitting_sees_the_same_batches_in_every_epoch(kind: str, tmp_path: Path) -> None:
    module, data = {"sft": sft, "dpo": dpo, "reward": partial(reward, tmp_path)}[kind]()
    rows = Rows()
    trainer(tmp_path, callbacks=[rows], overfit_batches=2, max_epochs=3).fit(module, datamodule=data)
    assert len(rows.seen[0]) == 2
    assert rows.seen[0] == rows.seen[1] == rows.seen[2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"limit_train_batches": 0.1}, r"limit_train_batches: found 0\.1, less than one of 5 batches"),
        ({"limit_val_batches": 0.1}, r"limit_val_batches: found 0\.1, less than one of 2 batches"),
        ({"val_check_interval": 6}, "val_check_interval: found 6, but an epoch has 5 batches; give at most 5"),
        ({"val_check_interval": 3, "limit_train_batches": 2}, "val_check_interval: found 3, but an epoch has 2"),
    ],
)
def test_a_limit_that_no_epoch_meets_is_one_line(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    module, data = sft()
    with pytest.raises(UserError, match=rf"^trainer\.{message}"):
        trainer(tmp_path, **settings).fit(module, datamodule=data)


def test_validations_counted_over_epochs_may_be_rarer_than_epochs(tmp_path: Path) -> None:
    run = trainer(tmp_path, val_check_interval=6, check_val_every_n_epoch=None, max_epochs=2)
    module, data = sft()
    run.fit(module, datamodule=data)
    assert "val/loss" in run.callback_metrics


def test_nothing_is_logged_where_logging_is_off(tmp_path: Path) -> None:
    module, data = sft()
    run = trainer(tmp_path, log_every_n_steps=0)
    run.fit(module, datamodule=data)
    assert "train/loss" not in run.callback_metrics


def test_one_response_of_one_token_whitens_and_normalises_to_a_finite_step(tmp_path: Path) -> None:
    one = RolloutSettings(max_new_tokens=1, batch_size=1)
    module, data = ppo(rollout=one, num_minibatches=1, ppo_epochs=2, shaping=RewardShaping(normalize=True))
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, datamodule=data)
    assert module.last_rollout.advantages.tolist() == [[0.0]]
    assert all(bool(torch.isfinite(value)) for value in run.callback_metrics.values())


def test_the_pretraining_loss_is_the_mean_over_the_tokens_of_all_processes(tmp_path: Path) -> None:
    """A mean of the processes' means would give tokens of short rows more weight."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(f'{{"text": "{" ".join("abcdefgh"[: 1 + i % 8])}"}}\n' for i in range(16)))
    mix = PretrainingMix(coef=1.0, data=str(text), batch_size=2)
    mix.load(tiny_tokenizer(), seed=0)
    alone = PretrainingMix(coef=1.0, data=str(text), batch_size=4)
    alone.load(tiny_tokenizer(), seed=0)
    for step in range(4):
        whole: Any = alone.batch(step, 0, 1)
        shares: list[Any] = [mix.batch(step, rank, 2) for rank in range(2)]
        tokens = [int((share.labels != -100).sum()) for share in shares]
        assert whole.denominator == sum(tokens) == int((whole.labels != -100).sum())
        assert [share.denominator for share in shares] == [sum(tokens) / 2] * 2
