from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_lightning.errors import UserError
from rlhf_lightning.models.saving import save_model
from rlhf_lightning.runs.after_training import export_model
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e10, -1e10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_have_blown_up_are_not_exported_over_a_former_model(tmp_path, value, dtype):
    model, tokenizer = tiny_model().to(dtype), tiny_tokenizer()
    (tmp_path / "model").mkdir()
    (tmp_path / "model/former").touch()
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "down_proj" in name).view(-1)[3] = value

    def export(folder: Path) -> None:
        save_model(model, tokenizer, folder)

    with pytest.raises(UserError, match=r"down_proj.*blown up"):
        export_model(export, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model/former").is_file()


def test_an_export_that_fails_half_way_leaves_nothing_of_itself(tmp_path):
    def export(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "config.json").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(export, tmp_path)
    assert list(tmp_path.iterdir()) == []
