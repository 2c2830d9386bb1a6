"""A checkpoint is accepted only by a run of the same algorithm, network and rows."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.data import PreferenceDataModule, PromptDataModule, SFTDataModule
from rlhf_lightning.errors import UserError
from rlhf_lightning.models import LoRA, load_causal_lm
from rlhf_lightning.models.folder_marks import folder_mark
from rlhf_lightning.rewards import FunctionReward
from tests.algorithms.conftest import dpo, pair_rows, ppo, reward, sft, sft_rows, trainer
from tests.tiny import tiny_model, tiny_tokenizer

MAKERS = {"sft": sft, "dpo": dpo, "ppo": ppo}


def saved(folder: Path, module: Any, data: Any) -> Path:
    """Return a checkpoint after an epoch."""
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


def rewards(folder: Path, text: str) -> None:
    (folder / "mine_for_origin.py").write_text(text)


def with_function(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, **others: Any) -> Any:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "mine_for_origin", raising=False)
    importlib.invalidate_caches()
    rewards(folder, f"def fn(prompts, responses, **columns): return [{body}] * len(responses)\n")
    return ppo(reward=FunctionReward("mine_for_origin.fn"), **others)


def test_a_changed_reward_function_is_refused_unless_it_is_accepted(tmp_path, monkeypatch):
    checkpoint = saved(tmp_path, *with_function(tmp_path, monkeypatch, "0.5"))
    module, data = with_function(tmp_path, monkeypatch, "0.25")
    with pytest.raises(UserError, match=r"^reward\.function: the reward has changed .*source file.*resume_anyway=true"):
        trainer(tmp_path, max_epochs=2).fit(module, data, ckpt_path=checkpoint)
    module, data = with_function(tmp_path, monkeypatch, "0.25")
    module.accepts_other_rows = True
    trainer(tmp_path, max_epochs=2).fit(module, data, ckpt_path=checkpoint)
    module, data = with_function(tmp_path, monkeypatch, "0.5")
    trainer(tmp_path, max_epochs=2).fit(module, data, ckpt_path=checkpoint)


def test_changed_columns_that_only_the_reward_reads_are_refused(tmp_path):
    def made(answer: str) -> tuple[Any, Any]:
        module, _ = ppo()
        rows = [{"prompt": f"{a} b", "answer": answer} for a in "cdef"]
        return module, PromptDataModule(tiny_tokenizer(), rows)

    checkpoint = saved(tmp_path, *made("x"))
    with pytest.raises(UserError, match=r"^data\.train: "):
        trainer(tmp_path, max_epochs=2).fit(*made("y"), ckpt_path=checkpoint)
    trainer(tmp_path, max_epochs=2).fit(*made("x"), ckpt_path=checkpoint)


def test_changed_held_out_rows_margins_and_text_are_refused(tmp_path):
    checkpoint = saved(tmp_path, *sft())
    data = SFTDataModule(tiny_tokenizer(), sft_rows(), sft_rows(3), batch_size=2)
    with pytest.raises(UserError, match=r"^data\.val: "):
        trainer(tmp_path, max_epochs=2).fit(sft()[0], data, ckpt_path=checkpoint)
    with_margin = [[{**row, "margin": margin} for row in pair_rows()] for margin in (1.0, 2.0)]
    of = [PreferenceDataModule(tiny_tokenizer(), rows) for rows in with_margin]
    for each in of:
        each.setup()
    assert of[0].fingerprint() != of[1].fingerprint()


def moved() -> Any:
    """Return another model of the same shape."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model


def test_a_changed_reference_of_dpo_and_a_changed_base_under_an_adapter_are_refused(tmp_path):
    checkpoint = saved(tmp_path, *dpo())
    with pytest.raises(UserError, match=r"^model\.path: the reference has changed"):
        trainer(tmp_path, max_epochs=2).fit(*dpo(moved), ckpt_path=checkpoint)
    for folder, model in (("base", tiny_model), ("other", moved)):
        model().save_pretrained(tmp_path / folder)
    adapted = [partial(load_causal_lm, tmp_path / folder, adapter=LoRA(rank=2)) for folder in ("base", "other")]
    checkpoint = saved(tmp_path, *sft(adapted[0]))
    with pytest.raises(UserError, match=r"^model\.path: the weights under the adapter"):
        trainer(tmp_path, max_epochs=2).fit(*sft(adapted[1]), ckpt_path=checkpoint)
    trainer(tmp_path, max_epochs=2).fit(*sft(adapted[0]), ckpt_path=checkpoint)


def test_another_reward_model_in_the_same_folder_has_another_mark(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)) * 10000)
    before = folder_mark(tmp_path)
    (tmp_path / "hashes.json").write_text("{}")
    assert folder_mark(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(bytes(range(1, 256)) * 10000 + bytes(10000))
    assert folder_mark(tmp_path) != before
