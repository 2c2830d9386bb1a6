"""A checkpoint is taken up only by a run of the same algorithm, network and rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data import SFTDataModule
from rlhf_lightning.errors import UserError
from tests.algorithms.conftest import dpo, ppo, reward, sft, sft_rows, trainer
from tests.tiny import tiny_model, tiny_tokenizer

MAKERS = {"sft": sft, "dpo": dpo, "ppo": ppo}


def saved(folder: Path, module: Any, data: Any) -> Path:
    """A checkpoint after an epoch."""
    fit = trainer(folder)
    fit.fit(module, data)
    fit.save_checkpoint(folder / "saved.ckpt")
    return folder / "saved.ckpt"


@pytest.mark.parametrize(("first", "second"), [("dpo", "sft"), ("sft", "dpo"), ("sft", "ppo")])
def test_the_checkpoint_of_another_algorithm_is_refused(first, second, tmp_path):
    checkpoint = saved(tmp_path, *MAKERS[first]())
    with pytest.raises(UserError, match=r"^ckpt: it is a checkpoint of \w+, and this run trains with \w+"):
        trainer(tmp_path, max_epochs=2).fit(*MAKERS[second](), ckpt_path=checkpoint)


def test_a_reward_model_does_not_take_up_an_sft_run(tmp_path):
    checkpoint = saved(tmp_path, *sft())
    with pytest.raises(UserError, match=r"SFTModule, and this run trains with RewardModule"):
        trainer(tmp_path, max_epochs=2).fit(*reward(tmp_path), ckpt_path=checkpoint)


@pytest.mark.parametrize("size", [{"hidden": 16}, {"layers": 3}])
def test_the_checkpoint_of_another_size_is_refused(size, tmp_path):
    checkpoint = saved(tmp_path, *sft())
    with pytest.raises(UserError, match=r"^ckpt: "):
        trainer(tmp_path, max_epochs=2).fit(*sft(partial(tiny_model, **size)), ckpt_path=checkpoint)


def test_other_rows_are_refused_unless_they_are_accepted(tmp_path):
    checkpoint = saved(tmp_path, *sft())
    for accepts in (False, True):
        module, _ = sft()
        module.accepts_other_rows = accepts
        rows = [*sft_rows()[:-1], {"prompt": "z", "completion": "z"}]
        data = SFTDataModule(tiny_tokenizer(), rows, sft_rows(4), batch_size=2)
        if accepts:
            trainer(tmp_path, max_epochs=2).fit(module, data, ckpt_path=checkpoint)
        else:
            with pytest.raises(UserError, match=r"^data.train: the rows, .* have changed since the run began"):
                trainer(tmp_path, max_epochs=2).fit(module, data, ckpt_path=checkpoint)
