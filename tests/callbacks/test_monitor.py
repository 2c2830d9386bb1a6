"""The best checkpoints are chosen by an existing metric."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_lightning.callbacks import ResumableCheckpoint
from rlhf_lightning.errors import UserError
from tests.algorithms.conftest import ppo, sft, trainer


def fit(folder: Path, kind: str, monitor: str, **settings: int) -> ResumableCheckpoint:
    module, data = ppo() if kind == "ppo" else sft()
    save = ResumableCheckpoint(folder, monitor=monitor, save_top_k=1, save_on_train_epoch_end=True)
    trainer(folder, enable_checkpointing=True, callbacks=[save], max_epochs=2, **settings).fit(module, datamodule=data)
    return save


@pytest.mark.parametrize(
    ("kind", "monitor", "settings"),
    [("sft", "val/loss", {}), ("sft", "val/loss", {"check_val_every_n_epoch": 2}), ("ppo", "objective/scores", {})],
)
def test_the_best_by_a_logged_metric_is_kept(kind, monitor, settings, tmp_path):
    save = fit(tmp_path, kind, monitor, **settings)
    assert Path(save.best_model_path).is_file()
    assert save.best_model_score is not None


@pytest.mark.parametrize(
    ("monitor", "hint"), [("val/los", r"did you mean val/loss\?"), ("accuracy", "there are .*train/loss, .*val/loss")]
)
def test_a_metric_that_is_never_logged_ends_the_run_after_its_first_epoch(monitor, hint, tmp_path):
    with pytest.raises(UserError, match=f"^callbacks: the monitor '{monitor}' of a checkpoint was not logged .*{hint}"):
        fit(tmp_path, "sft", monitor)
